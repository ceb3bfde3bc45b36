"""Which Parquet files make up a split, and single row groups of them, read by byte range through a store.

In: a URL. Out: the files of one split in the order of their keys, and Arrow tables. A genworker dataset is read by its
manifest, so shards of an unfinished one are never mistaken for data.
"""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from genworker.errors import SourceError
from genworker.stores import open_store

if TYPE_CHECKING:
    from genworker.sources.base import Split
    from genworker.stores.base import ObjectInfo, Store

# A word of a path that names a split, as Hugging Face's loader sees it: train-00000-of-00010, data/test/0, my_train.
_SPLIT_WORD = re.compile(r"(?:^|[/_.\- ])(train|test|validation|valid|val|dev)(?=[/_.\- 0-9]|$)")
_NUM_THREADS = 8


class RangeFile(io.RawIOBase):
    """A read-only file over one object, which fetches what is read and nothing else."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info, self._position = store, info, 0

    def read(self, size: int = -1) -> bytes:
        """Fetch up to ``size`` bytes from the position on."""
        left = max(0, self._info.size - self._position)
        length = left if size < 0 else min(size, left)
        data = self._store.get(self._info.key, start=self._position, length=length) if length else b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is fetched."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True


class ParquetFiles:
    """The Parquet files of one split below a URL; ``footers[i]`` is pyarrow's metadata of ``infos[i]``."""

    def __init__(self, url: str, split: Split) -> None:
        self.url = url
        self.store, self.infos = _files_of_split(url, split)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            self.footers: list[Any] = list(pool.map(self._footer, self.infos))

    def read_row_group(self, file: int, row_group: int, columns: list[str]) -> Any:
        """Fetch some columns of one row group as a pyarrow Table; raises SourceError for a damaged file."""
        info = self.infos[file]
        try:
            with pq.ParquetFile(RangeFile(self.store, info), metadata=self.footers[file], pre_buffer=True) as parquet:
                return parquet.read_row_group(row_group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as err:
            raise SourceError(f"{self.url}: {info.key}: row group {row_group} cannot be read: {err}") from err

    def _footer(self, info: ObjectInfo) -> Any:
        try:
            return pq.read_metadata(RangeFile(self.store, info))
        except (pa.ArrowException, OSError) as err:
            raise SourceError(f"{self.url}: {info.key} ({info.size} bytes) is no whole Parquet file: {err}") from err


def _files_of_split(url: str, split: Split) -> tuple[Store, list[ObjectInfo]]:
    if url.endswith(".parquet"):
        parent, _, name = url.rpartition("/")
        store = open_store(parent or ("/" if url.startswith("/") else "."))
        name = unquote(name) if url.startswith("file://") else name
        infos = [info for info in store.list(name) if info.key == name]
        if not infos:
            raise SourceError(f"{url}: there is no such file")
    else:
        store = open_store(url)
        infos = _listed(store)
        if not infos:
            raise SourceError(f"{url}: holds no files ending in .parquet; check the path")
    words = [_split_of(info.key) for info in infos]
    if any(words):
        chosen = [info for info, word in zip(infos, words, strict=True) if word == split]
        seen = f"its files are of {', '.join(sorted({word for word in words if word}))}"
    else:
        chosen = infos if split == "train" else []
        seen = "no file name tells a split, so all of it counts as training data"
    if not chosen:
        raise SourceError(f"{url}: has no split {split!r}: {seen}; set split, or name the files {split}-....parquet")
    return store, sorted(chosen, key=lambda info: info.key)


def _listed(store: Store) -> list[ObjectInfo]:
    """All Parquet files below the store's URL; those that the manifest names where it is a genworker dataset."""
    everything = {info.key: info for info in store.list()}
    # The keys are those of bulk.plan, which stands on a higher floor and cannot be imported here.
    if "_manifest.json" in everything:
        try:
            keys = [str(shard["key"]) for shard in json.loads(store.get("_manifest.json"))["shards"]]
        except (ValueError, KeyError, TypeError) as err:
            raise SourceError(f"{store.url}: _manifest.json is no manifest of a genworker dataset: {err!r}") from err
        missing = [key for key in keys if key not in everything]
        if missing:
            raise SourceError(
                f"{store.url}: {len(missing)} shards of the manifest are gone, {missing[0]} first; run genworker verify"
            )
        return [everything[key] for key in keys if key.endswith(".parquet")]
    if ".genworker/plan.json" in everything:
        raise SourceError(
            f"{store.url}: is a genworker dataset without a manifest, so it is unfinished; run the generate command "
            "that began it again to finish it"
        )
    return [
        info
        for key, info in everything.items()
        if key.endswith(".parquet") and not any(part.startswith((".", "_")) for part in key.split("/"))
    ]


def _split_of(key: str) -> str | None:
    """The split that a file's path names; the last word counts, since folders hold more than one meaning."""
    words = _SPLIT_WORD.findall(key.lower().removesuffix(".parquet"))
    return str(words[-1]) if words else None
