"""Which files make up a split of sharded data, and byte ranges of one of them as a file.

In: a URL and a file extension. Out: the files of one split in the order of their keys. A genworker dataset is read by its
manifest, so shards of an unfinished one are never mistaken for data, and each is compared with its SHA-256 before it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from genworker.errors import SourceError, StoreAccessError
from genworker.sources.passed_over import in_other_guise, only_plain, remarks_on
from genworker.sources.splits import split_of
from genworker.stores import open_store

if TYPE_CHECKING:
    from genworker.sources.base import Split
    from genworker.stores.base import ObjectInfo, Store

# The keys are those of bulk.plan, which stands on a higher floor and cannot be imported here.
_MANIFEST, _SUCCESS, _PLAN = "_manifest.json", "_SUCCESS", ".genworker/plan.json"
_MAX_MESSAGE = 1000
_MAX_MANIFEST_BYTES = 2**28  # of a million and a half shards
_TABLE = "/metadata.parquet"  # of image files beside it, whose bytes the manifest counts with its own


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


class DigestCheck:
    """Compares shards with the SHA-256 of their manifest, each once, before it is first used; safe for many threads.

    An object store knows the digest; of a local file, all is read for it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._good: set[str] = set()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def __call__(self, info: ObjectInfo) -> None:
        """Raise SourceError where the shard is another than the manifest says; pass what no manifest names."""
        if info.sha256 is None:
            return
        with self._locks[info.key]:  # so that several threads do not read one file for the same
            if info.key in self._good:
                return
            seen = self._store.head(info.key)
            if seen.sha256 != info.sha256:
                raise SourceError(
                    f"{self._store.url}/{info.key}: has SHA-256 {seen.sha256}, the manifest says {info.sha256}; it was "
                    "changed after the job: `genworker verify` lists all such shards"
                )
            self._good.add(info.key)


class SplitFiles(NamedTuple):
    """The files of a split, in the order of their keys.

    Attributes:
        store: holds them.
        infos: each with the ``sha256`` that the manifest of a genworker dataset says, for `DigestCheck`.
        remarks: on files that look as if they were meant and are not read, see `base.Source`.
    """

    store: Store
    infos: list[ObjectInfo]
    remarks: tuple[str, ...]


def files_of_split(url: str, split: Split, extension: str) -> SplitFiles:
    """The files ending in ``.extension`` of one split.

    Args:
        url: one such file, or a folder or prefix of them. A genworker dataset is read by its manifest.
        split: told by file names, see `splits.split_of`. Where no name tells one, all are of ``train``.
        extension: without the dot.

    Raises:
        SourceError: there are none, or only compressed ones, the split is absent, or a genworker dataset is unfinished, or
            has lost shards or shards of another size than its manifest says.
    """
    disguised: list[str] = []
    if url.endswith(f".{extension}"):
        parent, _, name = url.rpartition("/")
        store = open_store(parent or ("/" if url.startswith("/") else "."))
        name = unquote(name) if url.startswith("file://") else name
        infos = [replace(info, sha256=None) for info in store.list(name) if info.key == name]
        if not infos:
            raise SourceError(f"{url}: there is no such file")
    else:
        store = open_store(url)
        try:
            infos, disguised = _listed(store, extension)
        except StoreAccessError as err:
            if in_other_guise(url, extension):  # a file, which is no store
                raise SourceError(f"{url}: {only_plain(extension)}") from err
            raise
        if not infos:
            if disguised:
                raise SourceError(
                    f"{url}: holds {len(disguised)} files such as {min(disguised)}; {only_plain(extension)}"
                )
            hint = only_plain(extension) if in_other_guise(url, extension) else "check the path"
            raise SourceError(f"{url}: holds no files ending in .{extension}; {hint}")
    words = [split_of(info.key.removesuffix(f".{extension}")) for info in infos]
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
    silent = [info.key for info, word in zip(infos, words, strict=True) if word is None] if any(words) else []
    remarks = remarks_on(
        url,
        (
            silent,
            f"their names tell no split and those of others do: name them {split}-....{extension} to have them read",
        ),
        ([key for key in disguised if split_of(key) in (None, split)], only_plain(extension)),
    )
    return SplitFiles(store, sorted(chosen, key=lambda info: info.key), remarks)


def _listed(store: Store, extension: str) -> tuple[list[ObjectInfo], list[str]]:
    """All files of the kind below the store's URL, and the keys of those in another guise.

    Of a genworker dataset those that the manifest names alone: what else lies there may be left from attempts.
    """
    everything = {info.key: info for info in store.list()}
    if _MANIFEST in everything:
        entries = _manifest_entries(store, everything)
        missing = [key for key in entries if key not in everything]
        if missing:
            raise SourceError(
                f"{store.url}: {len(missing)} shards of the manifest are gone, {missing[0]} first; run genworker verify"
            )
        infos = [everything[key] for key in entries if key.endswith(f".{extension}")]
        for info in infos:
            if info.size != entries[info.key][0] and not info.key.endswith(_TABLE):
                raise SourceError(
                    f"{store.url}/{info.key}: has {info.size} bytes, the manifest says {entries[info.key][0]}; it was changed "
                    "after the job: `genworker verify` lists all such shards"
                )
        return [replace(info, sha256=entries[info.key][1]) for info in infos], []
    if _PLAN in everything:
        raise SourceError(
            f"{store.url}: is a genworker dataset without a manifest, so it is unfinished; run the generate command "
            "that began it again to finish it"
        )
    seen = [key for key in everything if not any(part.startswith((".", "_")) for part in key.split("/"))]
    return (
        [replace(everything[key], sha256=None) for key in seen if key.endswith(f".{extension}")],
        [key for key in seen if in_other_guise(key, extension)],
    )


def _manifest_entries(store: Store, everything: dict[str, ObjectInfo]) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each shard by key, of a manifest that _SUCCESS vouches for."""
    if _SUCCESS not in everything:
        raise SourceError(
            f"{store.url}: is a genworker dataset without {_SUCCESS}, so the job stopped at its last step; run the generate "
            "command that began it again to finish it"
        )
    if (size := everything[_MANIFEST].size + everything[_SUCCESS].size) > _MAX_MANIFEST_BYTES:
        raise SourceError(
            f"{store.url}: {_MANIFEST} and {_SUCCESS} have {size} bytes; at most {_MAX_MANIFEST_BYTES} are read"
        )
    text = store.get(_MANIFEST)
    try:
        shards = json.loads(text)["shards"]
        entries = {str(shard["key"]): (int(shard["num_bytes"]), str(shard["sha256"])) for shard in shards}
        vouched = json.loads(store.get(_SUCCESS))["manifest_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise SourceError(
            f"{store.url}: {_MANIFEST} or {_SUCCESS} is none of a genworker dataset: {err!r}"[:_MAX_MESSAGE]
        ) from err
    if (seen := hashlib.sha256(text).hexdigest()) != vouched:
        raise SourceError(
            f"{store.url}: {_MANIFEST} has SHA-256 {seen}, {_SUCCESS} says {str(vouched)[:64]}; one of the two was changed "
            "after the job: restore it from a copy of the dataset"
        )
    return entries
