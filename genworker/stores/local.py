"""Objects as files below a folder, on a local disk or a shared file system.

In: a path or a ``file://`` URL. A put writes a temporary file, syncs it and links it to its final name, so an object is
visible whole or not at all. Opening or reading never creates the folder; only a put does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from genworker.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    UsageError,
)
from genworker.stores.base import ObjectInfo
from genworker.stores.keys import TEMPORARY_PREFIX, check_key, check_range, is_key

if TYPE_CHECKING:
    from collections.abc import Iterator

# A writer that was killed leaves its temporary file; nobody writes one object for a day.
STALE_SECONDS = 24 * 3600.0

# `genworker doctor` removes folders that it made where there were none, while they are empty. Once a temporary file is there,
# nothing above it is.
_TRIES = 3
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR}
# What file systems without hard links (FAT, some network and FUSE ones) answer to link().
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class LocalStore:
    """A `Store` over a folder. ``url`` is the absolute path, so that a pickled store means the same folder anywhere."""

    def __init__(self, url: str) -> None:
        """Open the folder at ``url``, which need not exist; raises UsageError for a file URL of another host."""
        self.url = str(_path_of(url))
        self._root = Path(self.url)
        self._temporary = self._root / TEMPORARY_PREFIX
        self._swept = False

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def __reduce__(self) -> tuple[type[LocalStore], tuple[str]]:
        return type(self), (self.url,)

    @cached_property
    def conditional(self) -> bool:
        """Whether the file system has hard links, found out by making one; the folder is created for that."""
        with self._edge("probe", TEMPORARY_PREFIX):
            temporary = self._write_temporary(b"")
            second = temporary.with_suffix(".link")
            try:
                self._link(temporary, second)
            except OSError as err:
                if err.errno in _NO_LINKS:
                    return False
                raise
            else:
                return True
            finally:
                temporary.unlink(missing_ok=True)
                second.unlink(missing_ok=True)

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        """Store ``data`` as one file; see `Store.put`."""
        path = self._root / check_key(key)
        with self._edge("put", key):
            if not overwrite and path.exists():  # spares the write; the link below is what decides
                raise self._taken(path, key)
            create = not overwrite and self.conditional
            self._sweep()
            temporary = self._write_temporary(data)
            try:
                modified = temporary.stat().st_mtime
                self._make_folder(path.parent, key)
                if create:
                    self._create(temporary, path, key)
                elif not overwrite and path.exists():
                    raise self._taken(path, key)
                else:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return ObjectInfo(key, len(data), modified, hashlib.sha256(data).hexdigest())

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the file's bytes or a range of them; see `Store.get`."""
        path = self._root / check_key(key)
        check_range(start, length)
        with self._edge("get", key), path.open("rb") as file:
            file.seek(start)
            if length is None:
                return file.read()
            # Python makes room for all that is asked for.
            return file.read(max(0, min(length, os.fstat(file.fileno()).st_size - start)))

    def head(self, key: str) -> ObjectInfo:
        """Return size, time and digest, for which the file is read; see `Store.head`."""
        path = self._root / check_key(key)
        with self._edge("head", key), path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ObjectInfo(key, status.st_size, status.st_mtime, digest)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield files folder by folder, in key order; see `Store.list`."""
        folder = prefix.rpartition("/")[0]
        if not folder or is_key(folder):
            yield from self._walk(folder, prefix, frozenset())

    def delete(self, key: str) -> None:
        """Remove a file; its folder stays, because another writer may just be filling it. See `Store.delete`."""
        path = self._root / check_key(key)
        with self._edge("delete", key):
            self._sweep()
            if not path.is_dir():
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()

    def _walk(self, folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[ObjectInfo]:
        try:
            with self._edge("list", prefix):
                here = self._root.joinpath(folder).stat()
                with os.scandir(self._root / folder) as entries:
                    # A folder sorts as its keys do, with the slash: "a-b" < "a/b" < "ab".
                    found = sorted((f"{entry.name}/" if entry.is_dir() else entry.name, entry) for entry in entries)
        except ObjectMissingError:
            return
        identity = (here.st_dev, here.st_ino)
        if identity in above:  # a symbolic link to a folder above
            return
        for name, entry in found:
            key = f"{folder}/{name}" if folder else name
            if not is_key(key.removesuffix("/")):
                continue
            if name.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(key[:-1], prefix, above | {identity})
            elif key.startswith(prefix) and entry.is_file():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = entry.stat()
                    yield ObjectInfo(key, status.st_size, status.st_mtime)

    def _write_temporary(self, data: bytes) -> Path:
        path = self._temporary / uuid.uuid4().hex
        try:
            with os.fdopen(self._open_temporary(path), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _open_temporary(self, path: Path) -> int:
        for left in reversed(range(_TRIES)):
            try:
                self._make_folder(self._temporary, TEMPORARY_PREFIX)
                # os.open keeps the user's umask; tempfile would make objects that nobody else can read.
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError("the last one raises")

    def _create(self, temporary: Path, path: Path, key: str) -> None:
        try:
            self._link(temporary, path)
        except FileExistsError as err:
            # Over NFS a link can succeed and lose its reply; then the object there is ours.
            if not path.exists() or not temporary.samefile(path):
                raise self._taken(path, key) from err

    def _link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def _make_folder(self, folder: Path, key: str) -> None:
        if folder.is_dir():
            return
        try:
            self._make_folder(folder.parent, key)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)
        except (FileExistsError, NotADirectoryError) as err:
            self._check_root()
            raise StoreError(
                f"put {key!r} in {self.url}: a part of the key is an object, and a file cannot hold others; "
                "use another key"
            ) from err

    def _taken(self, path: Path, key: str) -> StoreError:
        if path.is_dir():
            return StoreError(f"put {key!r} in {self.url}: that is a folder which holds other objects; use another key")
        return ObjectExistsError(f"put {key!r} in {self.url}: the key is taken and overwrite is off")

    def _sweep(self) -> None:
        """Remove what killed writers left, once per store object, with whatever else is put or deleted here."""
        if self._swept:
            return
        self._swept = True
        with contextlib.suppress(OSError):
            for path in self._temporary.iterdir():
                if path.stat().st_mtime < time.time() - STALE_SECONDS:
                    path.unlink(missing_ok=True)

    def _check_root(self) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise StoreAccessError(f"store {self.url}: this is a file; a store needs a folder, so give another path")

    @contextlib.contextmanager
    def _edge(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if err.errno == errno.ENOTDIR:
                self._check_root()
            what = f"{action} {key!r} in {self.url}"
            reason = err.strerror or str(err)
            if err.errno in _FULL:
                raise StoreFullError(
                    f"{what}: {reason}; make space there or choose another place, then try again"
                ) from err
            if err.errno in _DENIED:
                raise StoreAccessError(f"{what}: {reason}; check owner and mode of {err.filename or self.url}") from err
            if err.errno in _MISSING and action in {"get", "head", "list"}:
                hint = "" if self._root.exists() else " (nor is there such a folder)"
                raise ObjectMissingError(f"{what}: there is no such object{hint}") from err
            raise StoreError(f"{what}: {reason}") from err


def _path_of(url: str) -> Path:
    if url.startswith("file://"):
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or not parts.path:
            raise UsageError(f"store URL {url!r}: write a file URL as file:///absolute/path, or give the path alone")
        url = unquote(parts.path)
    # Absolute, but with symbolic links kept: the user's name for the folder is the one to show.
    try:
        return Path(os.path.abspath(Path(url).expanduser()))  # noqa: PTH100
    except RuntimeError as err:  # a user whom this machine does not know
        raise UsageError(f"store URL {url!r}: {err} Write ./~ for a folder of that name") from err


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the file system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
