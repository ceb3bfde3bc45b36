"""Which files make up a split of sharded data, and byte ranges of one of them as a file.

In: a URL and a file extension. Out: the files of one split in the order of their keys. A genworker dataset is read by its
manifest, so shards of an unfinished one are never mistaken for data.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from genworker.errors import SourceError
from genworker.stores import open_store

if TYPE_CHECKING:
    from genworker.sources.base import Split
    from genworker.stores.base import ObjectInfo, Store

# A word of a path that names a split, as Hugging Face's loader sees it: train-00000-of-00010, data/test/0, my_train.
_SPLIT_WORD = re.compile(r"(?:^|[/_.\- ])(train|test|validation|valid|val|dev)(?=[/_.\- 0-9]|$)")


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


def files_of_split(url: str, split: Split, extension: str) -> tuple[Store, list[ObjectInfo]]:
    """The files ending in ``.extension`` of one split, in the order of their keys, and the store that holds them.

    Args:
        url: one such file, or a folder or prefix of them. A genworker dataset is read by its manifest.
        split: told by file names: train-00000-of-00010, data/test/0. Where no name tells one, all are of ``train``.
        extension: without the dot.

    Raises:
        SourceError: there are none, the split is absent, or a genworker dataset is unfinished or has lost shards.
    """
    if url.endswith(f".{extension}"):
        parent, _, name = url.rpartition("/")
        store = open_store(parent or ("/" if url.startswith("/") else "."))
        name = unquote(name) if url.startswith("file://") else name
        infos = [info for info in store.list(name) if info.key == name]
        if not infos:
            raise SourceError(f"{url}: there is no such file")
    else:
        store = open_store(url)
        infos = _listed(store, extension)
        if not infos:
            raise SourceError(f"{url}: holds no files ending in .{extension}; check the path")
    words = [_split_of(info.key.removesuffix(f".{extension}")) for info in infos]
    if any(words):
        chosen = [info for info, word in zip(infos, words, strict=True) if word == split]
        seen = f"its files are of {', '.join(sorted({word for word in words if word}))}"
    else:
        chosen = infos if split == "train" else []
        seen = "no file name tells a split, so all of it counts as training data"
    if not chosen:
        raise SourceError(
            f"{url}: has no split {split!r}: {seen}; set split, or name the files {split}-....{extension}"
        )
    return store, sorted(chosen, key=lambda info: info.key)


def _listed(store: Store, extension: str) -> list[ObjectInfo]:
    """All files of the kind below the store's URL; those that the manifest names where it is a genworker dataset."""
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
        return [everything[key] for key in keys if key.endswith(f".{extension}")]
    if ".genworker/plan.json" in everything:
        raise SourceError(
            f"{store.url}: is a genworker dataset without a manifest, so it is unfinished; run the generate command "
            "that began it again to finish it"
        )
    return [
        info
        for key, info in everything.items()
        if key.endswith(f".{extension}") and not any(part.startswith((".", "_")) for part in key.split("/"))
    ]


def _split_of(key: str) -> str | None:
    """The split that a file's path names; the last word counts, since folders hold more than one meaning."""
    words = _SPLIT_WORD.findall(key.lower())
    return str(words[-1]) if words else None
