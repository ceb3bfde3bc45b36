"""What may be removed from below a dataset's URL, and its removal.

In: a store and an age. Out: `Garbage`, object by object, each with the reason. Nothing that genworker did not make is ever
among it, nothing that a reader of the dataset needs, and nothing of a job that wrote something lately.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from genworker.bulk import commit
from genworker.bulk.layout import Layout
from genworker.bulk.plan import (
    CONTROL_PREFIX,
    DATA_PREFIX,
    FAILURES_PREFIX,
    MANIFEST_KEY,
    PLAN_KEY,
    RECEIPTS_PREFIX,
    SUCCESS_KEY,
)
from genworker.errors import DatasetError, PlanError
from genworker.stores.base import ObjectInfo, Store

# What asks a store for its abilities leaves these where it may not delete.
PROBE_PREFIXES = (CONTROL_PREFIX + "probe/", CONTROL_PREFIX + "doctor/")


@dataclass(frozen=True)
class Garbage:
    """One object that may go, and why."""

    key: str
    size: int
    reason: str


def find_garbage(
    store: Store, *, older_than_seconds: float, unfinished: bool = False, now: float | None = None
) -> list[Garbage]:
    """List what may be removed, in the order in which to remove it.

    Always: left-over probes; of a published dataset its receipts and failures, which the manifest replaces. With
    ``unfinished``: all of a job that was never published, the plan last, so that a removal that stops half-way leaves a
    job that can still be resumed or removed.

    Args:
        store: of the dataset.
        older_than_seconds: objects younger than this stay; with ``unfinished``, the youngest object of the job decides.
        unfinished: also give up a job that is not published.
        now: seconds since the epoch.

    Raises:
        DatasetError: there is no job, or with ``unfinished``: it is published, or wrote something lately.
    """
    now = time.time() if now is None else now
    plan = commit.read_plan(store)
    if plan is None:
        raise DatasetError(f"{store.url}: there is no {PLAN_KEY}, so nothing here was made by `genworker generate`")

    def old(infos: Iterable[ObjectInfo], reason: str) -> Iterator[Garbage]:
        return (Garbage(info.key, info.size, reason) for info in infos if now - info.modified >= older_than_seconds)

    found = [garbage for prefix in PROBE_PREFIXES for garbage in old(store.list(prefix), "left by a probe")]
    if commit.published(store) is not None:
        if unfinished:
            raise DatasetError(f"{store.url}: the dataset is published; `genworker retain` removes whole old datasets")
        for prefix, reason in ((RECEIPTS_PREFIX, "the manifest holds it"), (FAILURES_PREFIX, "was overcome")):
            found += old(store.list(prefix), reason)
        return found
    if not unfinished:
        return found
    # A driver may have stopped between the two objects that publish; the marker goes before what it vouches for.
    marks = {info.key: info for info in store.list() if info.key in {SUCCESS_KEY, MANIFEST_KEY, PLAN_KEY}}
    doomed = [marks[key] for key in (SUCCESS_KEY, MANIFEST_KEY) if key in marks]
    layout = Layout(plan)
    doomed += [info for info in store.list(DATA_PREFIX) if layout.owner(info.key) is not None]
    doomed += [info for info in store.list(CONTROL_PREFIX) if info.key != PLAN_KEY]
    doomed.append(marks[PLAN_KEY])
    age = now - max(info.modified for info in doomed)
    if age < older_than_seconds:
        raise DatasetError(
            f"{store.url}: the unfinished job wrote something {age:,.0f} s ago, so it may still run; only jobs that were "
            f"silent for {older_than_seconds:,.0f} s are given up: stop it and wait, or lower --older-than"
        )
    return [Garbage(info.key, info.size, "of a job that was never published") for info in doomed]


def remove(store: Store, garbage: Iterable[Garbage]) -> int:
    """Delete objects in the order given; returns how many.

    Raises:
        PlanError: the URL holds no plan any more; somebody else removes it too.
    """
    removed = 0
    for item in garbage:
        if item.key == PLAN_KEY and commit.read_plan(store) is None:
            raise PlanError(f"{store.url}/{PLAN_KEY}: is gone already; somebody else removes this job at the same time")
        store.delete(item.key)
        removed += 1
    return removed
