"""How far a job is, from storage alone: while it runs, after it died, after its cluster is gone.

In: a store. Out: a `Status` of what is there: shards, their times, the failures that drivers recorded, the manifest.
It asks no Ray, opens no shard, and never writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from genworker.bulk import commit, failures
from genworker.bulk.layout import Layout
from genworker.bulk.manifest import published
from genworker.bulk.plan import DATA_PREFIX, PLAN_KEY, RECEIPTS_PREFIX, Plan
from genworker.bulk.removal import RETAIN, removed_by
from genworker.errors import DatasetError

if TYPE_CHECKING:
    from genworker.stores.base import Store

State = Literal["published", "running", "stopped", "failed", "not started", "being removed"]

# The rate is that of the last minutes, because a job may have been resumed after a night.
_WINDOW_SECONDS = 300.0
# A job that wrote nothing for this long, and for several times its usual pause, is taken for dead.
_SILENCE_SECONDS = 120.0
_USUAL_PAUSES = 5.0


@dataclass(frozen=True)
class Status:
    """What storage tells of a job.

    Attributes:
        url: of the dataset.
        plan_id: of the plan there.
        state: ``running`` means that something was written lately; storage cannot know more.
        num_shards: of the plan; ``shards_done`` of them are stored.
        num_samples: of the plan; ``samples_done`` of them are stored.
        bytes_done: of stored shards.
        num_control: objects that the job keeps beside its shards.
        num_foreign: objects under data/ that are no shards of the plan.
        last_write_seconds: since the newest shard or receipt, None before the first.
        samples_per_second: over the last minutes of writing, None before two shards are there.
        eta_seconds: until the last shard at that rate, None unless running.
        num_failures: how many drivers ended with an error so far.
        failure: the last of these errors, where the job has failed or stopped: if it failed, nothing was made since.
        removal: the command that is removing the dataset, or was stopped while it did; None where there is none.
    """

    url: str
    plan_id: str
    state: State
    num_shards: int
    shards_done: int
    num_samples: int
    samples_done: int
    bytes_done: int
    num_control: int
    num_foreign: int
    last_write_seconds: float | None
    samples_per_second: float | None
    eta_seconds: float | None
    num_failures: int
    failure: str | None
    removal: str | None

    @property
    def shards_missing(self) -> int:
        """Shards that are still to be made."""
        return self.num_shards - self.shards_done


def status(store: Store, now: float | None = None) -> Status:
    """Look at the job at a URL; ``now`` is in seconds since the epoch.

    Raises:
        DatasetError: there is no plan, or it is not the manifest's.
        PlanError: the plan cannot be read.
    """
    now = time.time() if now is None else now
    plan = commit.read_plan(store)
    if plan is None:
        raise DatasetError(
            f"{store.url}: there is no {PLAN_KEY}, so no job was started here; check the URL, or start one with "
            "`genworker generate`"
        )
    written, samples, size, foreign = _shards(store, plan)
    receipts = [info.modified for info in store.list(RECEIPTS_PREFIX)]
    failed = failures.read(store)
    newest = max([*(when for when, _ in written), *receipts], default=None)
    rate, pause = _pace(written)
    state: State = "running"
    manifest = published(store)
    if manifest is not None and manifest.plan_id != plan.plan_id:
        raise DatasetError(
            f"{store.url}/{PLAN_KEY}: is plan {plan.plan_id}, the manifest is of {manifest.plan_id}; `genworker verify` says "
            "what differs"
        )
    removal, complete = removed_by(store), manifest is not None
    if removal is not None and (removal == RETAIN or not complete):  # another notice beside a dataset came too late
        state = "being removed"
    elif complete:
        state = "published"
    elif failed.error is not None and failed.at >= (newest or 0.0):
        state = "failed"
    elif newest is None:
        state = "not started"
    elif now - newest > max(_SILENCE_SECONDS, _USUAL_PAUSES * pause):
        state = "stopped"
    left = plan.num_samples - samples
    return Status(
        url=store.url,
        plan_id=plan.plan_id,
        state=state,
        num_shards=plan.num_shards,
        shards_done=len(written),
        num_samples=plan.num_samples,
        samples_done=samples,
        bytes_done=size,
        num_control=len(receipts) + failed.count,
        num_foreign=foreign,
        last_write_seconds=None if newest is None else max(0.0, now - newest),
        samples_per_second=rate,
        eta_seconds=left / rate if rate and state == "running" else None,
        num_failures=failed.count,
        failure=failed.error if state in {"failed", "stopped"} else None,
        removal=removal if state == "being removed" else None,
    )


def _shards(store: Store, plan: Plan) -> tuple[list[tuple[float, int]], int, int, int]:
    """Time and samples of each stored shard, samples and bytes in all, and the number of foreign objects."""
    written: list[tuple[float, int]] = []
    samples = size = foreign = 0
    layout = Layout(plan)
    for info in store.list(DATA_PREFIX):
        index = plan.shard_index_of(info.key)
        if index is None and layout.owner(info.key) is None:
            foreign += 1
            continue
        size += info.size
        if index is None:  # a file beside the table of its shard, which comes last
            continue
        count = plan.task(index).num_samples
        written.append((info.modified, count))
        samples += count
    return sorted(written), samples, size, foreign


def _pace(written: list[tuple[float, int]]) -> tuple[float | None, float]:
    """Samples per second over the last minutes of writing, and the mean pause between shards there."""
    if len(written) < 2:
        return None, 0.0
    last = written[-1][0]
    lately = [(when, count) for when, count in written if when >= last - _WINDOW_SECONDS]
    if len(lately) < 2:  # one shard takes longer than the window
        lately = written[-2:]
    seconds = lately[-1][0] - lately[0][0]
    if seconds <= 0.0:  # stores tell whole seconds
        return None, 0.0
    return sum(count for _, count in lately[1:]) / seconds, seconds / (len(lately) - 1)
