"""Data sources by name: where the images to train on come from.

To add one: write a module with a class that follows `base.Source`, add a line here and an example to the contract
tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genworker.registry import lookup

if TYPE_CHECKING:
    from genworker.sources.base import Source, SourceConfig

# Dotted paths, because each source knows a library that a command which never reads data should not import.
SOURCES = {
    "idx": "genworker.sources.idx.IdxSource",
    "fashion-mnist": "genworker.sources.fashion_mnist.FashionMnistSource",
    "image-folder": "genworker.sources.folder.FolderSource",
    "parquet": "genworker.sources.parquet.ParquetSource",
    "webdataset": "genworker.sources.webdataset.WebDatasetSource",
}


def names() -> list[str]:
    """The names of all sources."""
    return list(SOURCES)


def get(name: str) -> type[Source]:
    """The class of the source called ``name``; raises UsageError that lists the known names."""
    found: type[Source] = lookup("data source", SOURCES, name)
    return found


def open_source(config: SourceConfig) -> Source:
    """Open the data that ``config`` describes; raises SourceError when it is missing, empty or of the wrong shape."""
    return get(config.name)(config)
