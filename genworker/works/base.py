"""The contract of bulk work: one task in, its samples out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from genworker.bulk.plan import Task
from genworker.bulk.stages import StageSeconds
from genworker.schema import SampleBatch


class Work(Protocol):
    """A pure function from a task to samples, set up once per actor."""

    def run(self, task: Task, stages: StageSeconds) -> Iterator[SampleBatch]:
        """Yield the task's samples in order of sample_index; the same task always gives the same samples.

        Adds to ``stages`` where the time went. Runs in one thread at a time.
        """
        ...
