"""What ended drivers, kept beside the dataset for whoever looks at it later. It informs people; nothing depends on it.

In: a store, an error. Out: one object below .genworker/failures/ per driver that failed, and the newest of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass

from pydantic import ValidationError

from genworker.bulk.plan import FAILURES_PREFIX, Plan
from genworker.bulk.records import MAX_NOTE_BYTES, Failure
from genworker.errors import ObjectExistsError, ObjectMissingError
from genworker.stores.base import Store

_MAX_ERROR_CHARACTERS = 4_000


@dataclass(frozen=True)
class Failures:
    """The failures at a URL.

    Attributes:
        count: how many there are.
        error: the newest one's message; None where there is none, or it cannot be read.
        at: when the newest was stored, in seconds since the epoch by the store's clock, 0 where there is none.
    """

    count: int
    error: str | None
    at: float


def write(store: Store, plan: Plan, error: str, shards_done: int) -> None:
    """Tell whoever looks at the URL what ended this driver; see `genworker.reading.status`."""
    failure = Failure(
        plan_id=plan.plan_id, error=error[:_MAX_ERROR_CHARACTERS], shards_done=shards_done, at=time.time()
    )
    text = failure.canonical().encode()
    with contextlib.suppress(ObjectExistsError):
        store.put(f"{FAILURES_PREFIX}{failure.at:.0f}-{hashlib.sha256(text).hexdigest()[:16]}.json", text)


def read(store: Store) -> Failures:
    """Count the failures at a URL, and read the newest."""
    infos = list(store.list(FAILURES_PREFIX))
    if not infos:
        return Failures(0, None, 0.0)
    newest = max(infos, key=lambda info: (info.modified, info.key))
    error = None
    # It may be damaged, or removed meanwhile.
    if newest.size <= MAX_NOTE_BYTES:
        with contextlib.suppress(ObjectMissingError, ValidationError):
            error = Failure.model_validate_json(store.get(newest.key)).error
    return Failures(len(infos), error, newest.modified)
