"""Objects in the memory of this process, at ``memory://name`` or ``memory://name/prefix``; for tests and small work.

Stores opened with one name share one set of objects, for as long as the process lives. Another process that opens the
same URL sees a set of its own.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from genworker.errors import ObjectExistsError, ObjectMissingError, UsageError
from genworker.stores.base import ObjectInfo
from genworker.stores.keys import check_key, check_range, is_key

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class _Space:
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, tuple[ObjectInfo, bytes]] = field(default_factory=dict)


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()


class MemoryStore:
    """A `Store` over a dict of this process; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Open the objects below ``memory://name[/prefix]``; raises UsageError if there is no name."""
        name, _, prefix = url.removeprefix("memory://").strip("/").partition("/")
        if not is_key(name) or (prefix and not is_key(prefix)):
            raise UsageError(f"store URL {url!r}: write it as memory://name or memory://name/prefix")
        self._prefix = f"{prefix}/" if prefix else ""
        self.url = f"memory://{name}/{prefix}".rstrip("/")
        with _spaces_lock:
            self._space = _spaces.setdefault(name, _Space())

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    def __reduce__(self) -> tuple[type[MemoryStore], tuple[str]]:
        return MemoryStore, (self.url,)

    @property
    def conditional(self) -> bool:
        """Always True: a lock guards every put."""
        return True

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        """Store a copy of ``data``; see `Store.put`."""
        name = self._prefix + check_key(key)
        content = bytes(data)
        info = ObjectInfo(name, len(content), time.time(), hashlib.sha256(content).hexdigest())
        with self._space.lock:
            if not overwrite and name in self._space.objects:
                raise ObjectExistsError(f"put {key!r} in {self.url}: the key is taken and overwrite is off")
            self._space.objects[name] = info, content
        return replace(info, key=key)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes or a range of them; see `Store.get`."""
        check_range(start, length)
        _, content = self._find(key, "get")
        return content[start:] if length is None else content[start : start + length]

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object; see `Store.head`."""
        info, _ = self._find(key, "head")
        return replace(info, key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects that were there when the iteration began; see `Store.list`."""
        with self._space.lock:
            found = [info for name, (info, _) in self._space.objects.items() if name.startswith(self._prefix + prefix)]
        for info in sorted(found, key=lambda info: info.key):
            yield replace(info, key=info.key.removeprefix(self._prefix))

    def delete(self, key: str) -> None:
        """Remove an object; see `Store.delete`."""
        name = self._prefix + check_key(key)
        with self._space.lock:
            self._space.objects.pop(name, None)

    def _find(self, key: str, action: str) -> tuple[ObjectInfo, bytes]:
        name = self._prefix + check_key(key)
        with self._space.lock:
            if name not in self._space.objects:
                raise ObjectMissingError(f"{action} {key!r} in {self.url}: there is no such object")
            return self._space.objects[name]
