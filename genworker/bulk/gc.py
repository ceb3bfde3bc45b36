"""What may be removed from below a dataset's URL, and its removal.

In: a store and an age. Out: `Garbage`, object by object, each with the reason. Nothing that genworker did not make is ever
among it, nothing that a reader of the dataset needs, and nothing of a job that wrote something lately. A job that is given up
goes in this order:

    .genworker/removing.json   put first: from here on nobody adds to the job or publishes it
    _SUCCESS, _manifest.json   where a driver stopped between the two
    everything else of the job, side by side
    .genworker/plan.json, .genworker/removing.json
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from genworker.bulk import commit
from genworker.bulk.manifest import published
from genworker.bulk.plan import (
    CONTROL_PREFIX,
    FAILURES_PREFIX,
    MANIFEST_KEY,
    PLAN_KEY,
    RECEIPTS_PREFIX,
    REMOVING_KEY,
    SUCCESS_KEY,
    Plan,
)
from genworker.bulk.removal import GC, NOTICES, RETAIN, delete_all, delete_dataset, is_control, own_objects, removed_by
from genworker.errors import DatasetError, ObjectExistsError
from genworker.stores.base import ObjectInfo, Store

# What asks a store for its abilities leaves these where it may not delete.
PROBE_PREFIXES = (CONTROL_PREFIX + "probe/", CONTROL_PREFIX + "doctor/")


@dataclass(frozen=True, slots=True)  # there may be millions
class Garbage:
    """One object that may go, and why."""

    key: str
    size: int
    reason: str


def find_garbage(
    store: Store, *, older_than_seconds: float, unfinished: bool = False, now: float | None = None
) -> list[Garbage]:
    """List what may be removed.

    Always: left-over probes; of a published dataset its receipts and failures, which the manifest replaces. With
    ``unfinished``: all of a job that was never published.

    Args:
        store: of the dataset.
        older_than_seconds: objects younger than this stay; with ``unfinished``, the youngest object of the job decides.
        unfinished: also give up a job that is not published.
        now: seconds since the epoch.

    Raises:
        DatasetError: there is no job, or with ``unfinished``: it is published, is removed by `genworker retain`, or wrote
            something lately.
    """
    now = time.time() if now is None else now
    plan = _find_plan(store)

    def old(infos: Iterable[ObjectInfo], reason: str) -> Iterator[Garbage]:
        return (
            Garbage(info.key, info.size, reason)
            for info in infos
            if is_control(info.key) and now - info.modified >= older_than_seconds
        )

    found = [garbage for prefix in PROBE_PREFIXES for garbage in old(store.list(prefix), "left by a probe")]
    if published(store) is not None:
        if unfinished:
            raise DatasetError(f"{store.url}: the dataset is published; `genworker retain` removes whole old datasets")
        for prefix, reason in ((RECEIPTS_PREFIX, "the manifest holds it"), (FAILURES_PREFIX, "was overcome")):
            found += old(store.list(prefix), reason)
        if removed_by(store) == GC:
            found += old(store.list(REMOVING_KEY), "of a removal that came too late")
        return found
    if not unfinished:
        return found
    if removed_by(store) == RETAIN:
        raise DatasetError(f"{store.url}: `{RETAIN}` is removing this dataset, or was stopped; run it again to end it")
    doomed = list(own_objects(store.list(), plan))
    age = now - max((info.modified for info in doomed if info.key != REMOVING_KEY), default=-math.inf)
    if age < older_than_seconds:
        raise DatasetError(
            f"{store.url}: the unfinished job wrote something {age:,.0f} s ago, so it may still run; only jobs that were "
            f"silent for {older_than_seconds:,.0f} s are given up: stop it and wait, or lower --older-than"
        )
    return [Garbage(info.key, info.size, "of a job that was never published") for info in doomed]


def remove(store: Store, garbage: Iterable[Garbage]) -> int:
    """Delete what `find_garbage` found beside a dataset or job that stays; returns how many objects."""
    return delete_all(store, (item.key for item in garbage))


def give_up(store: Store, *, older_than_seconds: float, now: float | None = None) -> list[Garbage]:
    """Remove all of a job that was never published; returns what was removed.

    A driver that waits for machines writes nothing, so silence does not tell that there is none. Hence a second look behind
    the notice: what a driver wrote before it saw the notice is found, and whoever sees it writes no marker any more. A removal
    that stops goes on with the next call.

    Args:
        store: of the dataset.
        older_than_seconds: how long the job must have been silent.
        now: seconds since the epoch.

    Raises:
        DatasetError: as `find_garbage` with ``unfinished``; nothing was deleted, and no notice is left that was not there.
    """

    def look() -> list[Garbage]:
        return find_garbage(store, older_than_seconds=older_than_seconds, unfinished=True, now=now)

    look()  # a job that goes on is not disturbed by the notice
    announced = False
    with contextlib.suppress(ObjectExistsError):
        notice = store.put(REMOVING_KEY, NOTICES[GC])
        announced = True
        # The store's clock, which the times of objects are from; this machine's may be ahead.
        now = notice.modified if now is None else now
    try:
        garbage = look()
    except BaseException:
        if announced:
            store.delete(REMOVING_KEY)
        raise
    plan = commit.read_plan(store)
    delete_dataset(
        store,
        "",
        lambda: (item.key for item in garbage if item.key not in {SUCCESS_KEY, MANIFEST_KEY}),
        # Listed again: a driver that was running may have put a shard since.
        lambda: (info.key for info in own_objects(store.list(), plan)),
    )
    return [item for item in garbage if not (announced and item.key == REMOVING_KEY)]


def _find_plan(store: Store) -> Plan | None:
    """The plan, or None where a removal stopped between it and its notice. Raises DatasetError where neither is."""
    plan = commit.read_plan(store)
    if plan is None and removed_by(store) != GC:
        raise DatasetError(f"{store.url}: there is no {PLAN_KEY}, so nothing here was made by `genworker generate`")
    return plan
