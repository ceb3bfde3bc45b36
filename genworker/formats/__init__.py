"""Shard formats by name: how samples become objects, and back.

To add one: write a module with a class that follows `base.Format`, and add a line here; the contract tests run over the
table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genworker.errors import PlanError
from genworker.registry import lookup

if TYPE_CHECKING:
    from genworker.codecs.base import Codec
    from genworker.formats.base import Format
    from genworker.schema import Extras, ImageSchema

# Dotted paths, because each format knows a library that a command which handles no shard should not import.
FORMATS = {
    "parquet": "genworker.formats.parquet.ParquetFormat",
    "webdataset": "genworker.formats.webdataset.WebDatasetFormat",
    "files": "genworker.formats.files.FilesFormat",
}


def names() -> list[str]:
    """The names of all formats."""
    return list(FORMATS)


def get(name: str) -> type[Format]:
    """The class of the format called ``name``; raises UsageError that lists the known names."""
    found: type[Format] = lookup("format", FORMATS, name)
    return found


def make(name: str, schema: ImageSchema, codec: Codec, extras: Extras | None = None) -> Format:
    """The format called ``name`` for samples of ``schema``; raises UsageError that lists the known names."""
    return get(name)(schema, codec) if extras is None else get(name)(schema, codec, extras)


def check_samples_per_shard(
    name: str, schema: ImageSchema, codec: Codec, samples_per_shard: int, extras: Extras | None = None
) -> None:
    """Raise PlanError when a shard of that many samples could pass a limit of the format, whatever the pixels are."""
    limit = make(name, schema, codec, extras).max_samples_per_shard()
    if samples_per_shard <= limit:
        return
    advice = f"use at most {limit}" if limit else "not even one such image surely fits; use smaller images"
    raise PlanError(
        f"samples_per_shard {samples_per_shard}: a {name} shard of {schema.height}x{schema.width}x{schema.channels} "
        f"{codec.name} images could pass 2 GiB, the most that readers surely take in one piece; {advice}"
    )
