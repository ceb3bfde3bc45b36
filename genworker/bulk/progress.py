"""How far a job is, from its receipts: what displays show and logs hold.

In: receipts and events, and ticks between them. Out: `Progress`, at every one of them. It prints nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from genworker.bulk.plan import Plan
from genworker.bulk.receipt_table import ReceiptTable
from genworker.bulk.records import Receipt


class Event(str):
    """A line about an attempt at a shard that went wrong and was dealt with, with the shard's key and the attempt's number."""

    shard: str
    attempt: int

    def __new__(cls, text: str, shard: str, attempt: int) -> Self:
        """A line with what it is about."""
        event = super().__new__(cls, text)
        event.shard, event.attempt = shard, attempt
        return event


class Price(str):
    """What the job is going to cost, in a line; all other events are of what went wrong."""

    __slots__ = ()


@dataclass(frozen=True)
class Progress:
    """How far a job is. ``event`` is what was just told, see `Event` and `Price`, or empty."""

    num_shards: int
    num_done: int
    samples_done: int
    bytes_done: int
    samples_made: int
    making_seconds: float
    event: str = ""
    plan_id: str = ""
    num_samples: int = 0

    @property
    def samples_per_second(self) -> float:
        """Of this run."""
        return self.samples_made / self.making_seconds if self.making_seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None while there is none."""
        rate = self.samples_per_second
        return (self.num_samples - self.samples_done) / rate if rate > 0 else None


class Reporter:
    """Turns receipts and events into `Progress`."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._started = time.monotonic()
        self.samples_made = self.shards_made = 0
        self.plan: Plan | None = None
        self._plan_id = ""
        self._on_progress = on_progress
        self._done = self._samples = self._bytes = 0

    @property
    def seconds(self) -> float:
        """Since the first task could be given out."""
        return time.monotonic() - self._started

    @property
    def progress(self) -> Progress:
        """How far the job is now."""
        plan = self.plan
        return Progress(
            num_shards=plan.num_shards if plan else 0,
            num_done=self._done,
            samples_done=self._samples,
            bytes_done=self._bytes,
            samples_made=self.samples_made,
            making_seconds=self.seconds,
            plan_id=self._plan_id,
            num_samples=plan.num_samples if plan else 0,
        )

    def begin(self, plan: Plan, receipts: Mapping[int, Receipt]) -> None:
        """Start the clock, with what earlier runs have made; called again, count what others have made meanwhile."""
        if self.plan is None:
            self._started = time.monotonic()
        self.plan, self._plan_id, self._done = plan, plan.plan_id, len(receipts)
        table = ReceiptTable.of(plan.num_shards, receipts)
        self._samples, self._bytes = int(table.num_samples.sum()), int(table.num_bytes.sum())
        self._on_progress(self.progress)

    def made(self, receipt: Receipt) -> None:
        """Count a shard of this run."""
        self.samples_made += receipt.num_samples
        self.shards_made += 1
        self._done += 1
        self._samples += receipt.num_samples
        self._bytes += receipt.num_bytes
        self._on_progress(self.progress)

    def tick(self) -> None:
        """Tell how far the job is although nothing happened: with shards that take minutes it still shows that it lives."""
        self._on_progress(self.progress)

    def event(self, text: str) -> None:
        """Tell of something that went wrong and was dealt with, or a `Price`."""
        self._on_progress(dataclasses.replace(self.progress, event=text))
