"""What may be done at a URL: put, read, list, delete; whether puts can be create-only; what time it is there.

In: a store. Out: findings. It writes one small object below ``.genworker/doctor/`` and removes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from genworker.bulk.plan import CONTROL_PREFIX
from genworker.doctor.base import Finding
from genworker.errors import GenworkerError, ObjectExistsError
from genworker.stores.base import ObjectInfo, Store
from genworker.stores.keys import TEMPORARY_PREFIX
from genworker.stores.local import LocalStore

_CONTENT = b"written by `genworker doctor`; may be removed\n"
_MAX_SKEW_SECONDS = 5.0
_FAIL_SKEW_SECONDS = 600.0  # S3 refuses signatures that are 15 minutes off
_WARN_FREE_BYTES = 10 * 2**30


def check_store(store: Store) -> Iterator[Finding]:
    """Yield a finding for each thing that genworker does with a store; stops at the first that nothing works without."""
    key = f"{CONTROL_PREFIX}doctor/{uuid.uuid4().hex}"
    if not isinstance(store, LocalStore):
        yield from _check(store, key, is_new=False)
        return
    root = Path(store.url)
    with _leaving_no_empty((root / key).parent, root / TEMPORARY_PREFIX) as missing:
        yield from _check(store, key, is_new=root in missing)


def _check(store: Store, key: str, *, is_new: bool) -> Iterator[Finding]:
    began = time.time()
    try:
        info = store.put(key, _CONTENT)
    except GenworkerError as err:
        yield Finding("write", "fail", str(err), "mend this first; nothing else can be checked without")
        return
    ended = time.time()
    new = "; there is no such folder yet: it was made for this check, and is removed" if is_new else ""
    yield Finding("write", "ok", f"{store.url}: {(ended - began) * 1000:.0f} ms{new}")
    yield from _conditional(store, key)
    yield from _reading(store, key)
    yield _clock(info, began, ended)
    if isinstance(store, LocalStore):
        yield _space(Path(store.url))
    try:
        store.delete(key)
    except GenworkerError as err:
        fix = "fine for a role that only generates; `gc` and `retain` need it, and probes stay below .genworker/"
        yield Finding("delete", "warn", str(err), fix)
    else:
        yield Finding("delete", "ok", "allowed")


def _conditional(store: Store, key: str) -> Iterator[Finding]:
    if not store.conditional:
        yield Finding(
            "create-only put",
            "warn",
            "this store ignores the condition of a put",
            "jobs stay correct, because writers of one plan write equal bytes; do not aim two plans at one URL at once",
        )
        return
    try:
        store.put(key, _CONTENT)
    except ObjectExistsError:
        yield Finding("create-only put", "ok", "a second put of one key is refused")
    else:
        yield Finding("create-only put", "fail", "a second put of one key went through", "use another store")


def _reading(store: Store, key: str) -> Iterator[Finding]:
    try:
        whole, part, there = store.get(key), store.get(key, start=8, length=2), store.head(key)
        listed = [info.key for info in store.list(key)]
    except GenworkerError as err:
        yield Finding("read", "fail", str(err), "allow reading and listing; resuming and verifying need both")
        return
    right = whole == _CONTENT and part == _CONTENT[8:10] and there.sha256 == hashlib.sha256(_CONTENT).hexdigest()
    if not right or listed != [key]:
        seen = "what was written is not what is read, in whole, in part, by digest or in the list"
        yield Finding("read", "fail", seen, "look for a cache or proxy in between, or use another store")
        return
    yield Finding("read", "ok", "whole, by range, by digest and in the list")


def _clock(info: ObjectInfo, began: float, ended: float) -> Finding:
    # Stores tell whole seconds, so what lies in the same second as the put is no difference.
    skew = max(began - 1.0 - info.modified, info.modified - ended, 0.0)
    seen = f"differs from this machine's by {skew:.1f} s"
    if skew > _FAIL_SKEW_SECONDS:
        return Finding("clock", "fail", seen, "synchronise the clock (chrony); S3 refuses requests 15 minutes off")
    if skew > _MAX_SKEW_SECONDS:
        return Finding("clock", "warn", seen, "synchronise the clock (chrony); ages and rates are wrong by that much")
    return Finding("clock", "ok", seen)


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    seen = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < _WARN_FREE_BYTES:
        return Finding("space", "warn", seen, "a million 64x64 PNGs take about 7 GB; make space or use another place")
    return Finding("space", "ok", seen)


@contextlib.contextmanager
def _leaving_no_empty(*folders: Path) -> Iterator[list[Path]]:
    """Remove at the end those of ``folders``, and of those above them, that were missing before and are empty.

    Gives the missing ones, the deepest first.
    """
    missing = sorted(
        {folder for path in folders for folder in (path, *path.parents) if not folder.exists()},
        key=lambda folder: len(folder.parts),
        reverse=True,
    )
    try:
        yield missing
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
