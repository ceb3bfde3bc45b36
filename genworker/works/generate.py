"""Generate: latents and labels of the plan through a bundle's generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genworker.bulk.plan import Plan, Task
from genworker.bulk.stages import StageSeconds
from genworker.bundle import Bundle
from genworker.sampling.columns import StoredColumns
from genworker.sampling.engine import Engine
from genworker.schema import SampleBatch


class GenerateWork:
    """Samples [first_index, first_index + num_samples) of a plan; see `genworker.works.base.Work`."""

    def __init__(self, plan: Plan, bundle: Bundle, device: torch.device) -> None:
        self._engine = Engine(bundle, plan, device)
        self._columns = StoredColumns(bundle, plan, device)

    def run(self, task: Task, stages: StageSeconds) -> Iterator[SampleBatch]:
        """Yield the task's samples, a micro-batch at a time."""
        for batch in self._engine.batches(task.first_index, task.num_samples, stages):
            yield self._columns.complete(batch, stages)
