"""The engine: a trained generator on a device, turned into pixels as fast as the device allows.

In: a bundle and a plan. Out: `SampleBatch`es for any range of sample indices. Sample i is always evaluated as a member of
the same micro-batch, [k * micro_batch, (k + 1) * micro_batch) of the plan's own grid, whatever range was asked for, so its
pixels do not depend on shards, order or restarts. It never writes anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from genworker.bulk.plan import Plan
from genworker.bulk.stages import StageSeconds
from genworker.bundle import Bundle
from genworker.errors import BundleError
from genworker.sampling.evaluators import Evaluator, Finish, evaluator
from genworker.sampling.latents import labels, latents
from genworker.sampling.numerics import check_numerics
from genworker.schema import Int64Array, SampleBatch


class Engine:
    """A generator, placed on a device with the numerics of a plan; for one thread at a time."""

    def __init__(self, bundle: Bundle, plan: Plan, device: torch.device) -> None:
        if bundle.digest != plan.bundle_digest:
            raise BundleError(f"the plan was made for bundle {plan.bundle_digest[:16]}, this is {bundle.digest[:16]}")
        check_numerics(plan.numerics, device)
        self._plan = plan
        generator = bundle.generator()
        self._latent_dim = generator.latent_dim
        family = bundle.info.family
        self._num_classes = bundle.info.image_schema.num_classes if family.conditional else 0
        self._evaluator: Evaluator = evaluator(generator, plan.numerics, device, labelled=self._num_classes > 0)

    def batches(self, first: int, count: int, stages: StageSeconds | None = None) -> Iterator[SampleBatch]:
        """Yield samples [first, first + count) in order, at most a micro-batch at a time.

        Adds to ``stages`` where the time went.
        """
        stages = stages or StageSeconds()
        size = self._plan.numerics.micro_batch
        started: deque[tuple[int, Int64Array | None, Finish]] = deque()
        for start in range(first // size * size, first + count, size):
            started.append(self._start(start, size, stages))
            if len(started) > self._evaluator.ahead:
                yield _finish(*started.popleft(), first, count)
        while started:
            yield _finish(*started.popleft(), first, count)

    def _start(self, start: int, size: int, stages: StageSeconds) -> tuple[int, Int64Array | None, Finish]:
        with stages.timed("latents"):
            z = latents(self._plan.seed, start, size, self._latent_dim)
            classes = None
            if self._num_classes:
                classes = labels(self._plan.seed, start, size, self._num_classes, self._plan.labels)
        return start, classes, self._evaluator.start(z, classes, stages)


def _finish(start: int, classes: Int64Array | None, finish: Finish, first: int, count: int) -> SampleBatch:
    """The part of a micro-batch that lies in [first, first + count)."""
    pixels = finish()
    lower, upper = max(first - start, 0), min(first + count - start, len(pixels))
    return SampleBatch(
        sample_index=np.arange(start + lower, start + upper, dtype=np.int64),
        pixels=pixels[lower:upper],
        labels=None if classes is None else classes[lower:upper],
    )
