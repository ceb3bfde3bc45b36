"""The contract of an object store: flat keys, whole objects, and a put that can refuse to overwrite.

In: keys relative to the store's URL, bytes. Out: bytes and `ObjectInfo`. A store never renames, never appends, and never
leaves a half-written object visible under its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from genworker.errors import GenworkerError, ObjectMissingError


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows of one object.

    Attributes:
        key: path below the store's URL, with forward slashes.
        size: bytes.
        modified: seconds since the epoch, by the store's clock.
        sha256: hex digest of the content where the store knows it (`put` and `head` always tell; `list` may say None).
    """

    key: str
    size: int
    modified: float
    sha256: str | None = None


class Store(Protocol):
    """Objects below one URL.

    ``url`` is what the user named. ``conditional`` says whether a create-only put is enforced by the store itself; where
    it is False, `put` with ``overwrite=False`` checks with `head` first, which two writers can both pass: determinism,
    not the store, is then the fence (both write the same bytes).

    Every method raises `StoreAccessError` for missing credentials, permission or bucket, `StoreFullError` where no space
    is left, and `StoreError` for a failure that another attempt may not meet.
    """

    url: str

    @property
    def conditional(self) -> bool:
        """Whether the store enforces create-only puts (probed once where it can only be found out by trying)."""
        ...

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        """Store ``data`` under ``key`` as one visible step, checksummed on the way; tells the digest of what it was given.

        Raises:
            ObjectExistsError: ``overwrite`` is False and the key is taken. The object there may hold the same bytes (a
                lost reply, another writer): compare digests before calling it an error.
        """
        ...

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or ``length`` of them from ``start``. Raises ObjectMissingError."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return size, time and SHA-256 of an object. Raises ObjectMissingError."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``, in key order, each once; the empty prefix lists all."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is not an error."""
        ...


def is_there(store: Store, key: str) -> bool:
    """Whether there is an object under ``key``."""
    try:
        store.head(key)
    except ObjectMissingError:
        return False
    return True


def get_at_most(store: Store, key: str, most: int, error: type[GenworkerError]) -> bytes:
    """The bytes of an object that anybody may have put there, as long as they are no more than ``most``.

    Raises:
        ObjectMissingError: there is none.
        error: it has more; they are not fetched.
    """
    # One byte more than there may be tells a larger object.
    data = store.get(key, length=most + 1)
    if len(data) > most:
        raise error(f"{store.url}/{key}: has more than {most} bytes, which genworker never writes there")
    return data
