"""Image codecs by name: how the pixels of one image become bytes, and back.

To add one: write a module with a class that follows `base.Codec`, and add a line here; the contract tests run over the
table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genworker.errors import UsageError
from genworker.registry import lookup

if TYPE_CHECKING:
    from genworker.codecs.base import Codec
    from genworker.schema import ImageSchema

# Dotted paths, because each codec knows a library that a command which handles no image should not import.
CODECS = {
    "png": "genworker.codecs.png.PngCodec",
    "webp": "genworker.codecs.webp.WebpCodec",
    "jpeg": "genworker.codecs.jpeg.JpegCodec",
    "raw": "genworker.codecs.raw.RawCodec",
}


def names() -> list[str]:
    """The names of all codecs."""
    return list(CODECS)


def get(name: str) -> type[Codec]:
    """The class of the codec called ``name``; raises UsageError that lists the known names."""
    found: type[Codec] = lookup("codec", CODECS, name)
    return found


def make(name: str, schema: ImageSchema) -> Codec:
    """The codec called ``name`` for images of ``schema``.

    Raises:
        UsageError: there is no such codec, or it cannot store such images; the message lists those that can.
    """
    found = get(name)
    if not _stores(found, schema):
        able = ", ".join(other for other in CODECS if _stores(get(other), schema)) or "none"
        channels = " or ".join(map(str, found.channels))
        raise UsageError(
            f"codec {name!r}: images of {schema.describe()}; it stores {channels} channels and sides up to "
            f"{found.max_side}; codecs that store these images: {able}"
        )
    return found(schema)


def _stores(codec: type[Codec], schema: ImageSchema) -> bool:
    return schema.channels in codec.channels and max(schema.height, schema.width) <= codec.max_side
