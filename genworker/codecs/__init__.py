"""Image codecs by name: how the pixels of one image become bytes, and back.

A name is followed by a quality where the codec has one: ``png``, ``jpeg:85``; without it, ``jpeg`` means ``jpeg:90``.

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
    "webp-lossy": "genworker.codecs.webp.WebpLossyCodec",
    "jpeg": "genworker.codecs.jpeg.JpegCodec",
    "raw": "genworker.codecs.raw.RawCodec",
}


def names() -> list[str]:
    """The names of all codecs."""
    return list(CODECS)


def get(text: str) -> type[Codec]:
    """The class of the codec called ``text``, any quality left aside; raises UsageError that lists the known names."""
    found: type[Codec] = lookup("codec", CODECS, text.partition(":")[0])
    return found


def canonical(text: str) -> str:
    """The one way to write a codec, its quality spelled out: ``jpeg:90`` for ``jpeg``.

    Raises:
        UsageError: there is no such codec, it has no quality, or that quality is not a whole number in [1, 100].
    """
    name, quality = _parse(text)
    return name if quality is None else f"{name}:{quality}"


def make(text: str, schema: ImageSchema) -> Codec:
    """The codec called ``text``, such as ``png`` or ``jpeg:85``, for images of ``schema``.

    Raises:
        UsageError: as `canonical`, or the codec cannot store such images; the message lists those that can.
    """
    name, quality = _parse(text)
    found = get(name)
    if not _stores(found, schema):
        able = ", ".join(other for other in CODECS if _stores(get(other), schema)) or "none"
        channels = " or ".join(map(str, found.channels))
        raise UsageError(
            f"codec {name!r}: images of {schema.describe()}; it stores {channels} channels and sides up to "
            f"{found.max_side}; codecs that store these images: {able}"
        )
    return found(schema) if quality is None else found(schema, quality)


def _parse(text: str) -> tuple[str, int | None]:
    """Name and quality, the codec's default where the text has none."""
    name, colon, quality = text.partition(":")
    default = get(name).default_quality
    if not colon:
        return name, default
    if default is None:
        raise UsageError(f"codec {text!r}: {name} has no quality; write {name}")
    # Decimal digits of other scripts would make several spellings of one codec.
    if not (quality.isascii() and quality.isdecimal() and 1 <= int(quality[:4]) <= 100 and len(quality) <= 3):
        raise UsageError(f"codec {text!r}: the quality is a whole number from 1 to 100, as in {name}:{default}")
    return name, int(quality)


def _stores(codec: type[Codec], schema: ImageSchema) -> bool:
    return schema.channels in codec.channels and max(schema.height, schema.width) <= codec.max_side
