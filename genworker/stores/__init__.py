"""Object stores by URL scheme. Adding one: a module with a class like `MemoryStore`, and a line in `STORES`.

In: a URL (``s3://bucket/prefix``, ``memory://name``, ``file:///folder``) or a plain folder path. Out: a `Store`.
Opening a store never touches the network or the disk; the first request does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import quote

from genworker.errors import UsageError
from genworker.stores.base import ObjectInfo, Store
from genworker.stores.keys import check_key

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STORES", "ObjectInfo", "Store", "child_url", "get", "open_store"]

# Scheme -> "module:class", imported when first opened: botocore takes longer to load than a local run takes to start.
STORES: dict[str, str] = {
    "file": "genworker.stores.local:LocalStore",
    "memory": "genworker.stores.memory:MemoryStore",
    "s3": "genworker.stores.s3:S3Store",
}


def get(scheme: str) -> Callable[[str], Store]:
    """The store class of a URL scheme; raises UsageError with the known schemes."""
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in sorted(STORES))
        raise UsageError(f"store URL scheme {scheme!r}: not known; give a folder path or one of: {known}")
    module, _, name = STORES[scheme].partition(":")
    store: Callable[[str], Store] = getattr(import_module(module), name)
    return store


def open_store(url: str) -> Store:
    """Open the store at ``url``; a URL without a scheme is a folder path.

    Raises:
        UsageError: the scheme is not known, or the URL is not well formed.
    """
    return get(_scheme(url))(url)


def child_url(url: str, *parts: str) -> str:
    """``url`` with key parts below it, for paths and for URLs: ``child_url("s3://b/runs/", "7", "bundle")``.

    Raises:
        UsageError: ``url`` is empty, or a part is no valid key (absolute, ``..``, empty, ...).
    """
    _scheme(url)
    below = "/".join(check_key(part) for part in parts)
    if not below:
        return url
    # Only file:// URLs are percent-encoded; S3 keys and paths are taken as they are written.
    return f"{url.rstrip('/')}/{quote(below) if url.startswith('file://') else below}"


def _scheme(url: str) -> str:
    if not url:
        raise UsageError("store URL '': it is empty; give a folder path, or a URL such as s3://bucket/prefix")
    if any("\ud800" <= character <= "\udfff" for character in url):
        raise UsageError(
            f"store URL {url!r}: holds bytes that are no UTF-8, which no record of it could name; rename the folder"
        )
    scheme, separator, _ = url.partition("://")
    return scheme if separator and "/" not in scheme else "file"
