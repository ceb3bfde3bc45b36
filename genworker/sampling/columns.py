"""The optional columns of generated samples: what the engine makes, completed to what a plan stores.

In: a bundle, a plan, batches of the engine. Out: the same batches with latents and scores, and without labels, where the plan
says so. Scores are of the pixels before a lossy codec, in float32, and computed on the grid of the engine's micro-batches, so
that they too depend on the sample's index alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from genworker.bulk.stages import StageSeconds
from genworker.device import check_memory, memory_refusals, threads
from genworker.errors import BundleError
from genworker.sampling.latents import labels, latents

if TYPE_CHECKING:
    from genworker.bulk.plan import Plan
    from genworker.bundle import Bundle
    from genworker.schema import Float32Array, SampleBatch


class StoredColumns:
    """Completes batches to the columns of a plan; ``bundle`` has to be loaded with its scorer where the plan has scores."""

    def __init__(self, bundle: Bundle, plan: Plan, device: torch.device) -> None:
        self._plan = plan
        self._num_classes = bundle.info.image_schema.num_classes if bundle.info.family.conditional else 0
        self._scores = _Scores(bundle, plan, device) if "score" in plan.columns else None

    def complete(self, batch: SampleBatch, stages: StageSeconds | None = None) -> SampleBatch:
        """A batch of consecutive samples with the columns that the plan stores, and no others."""
        stages = stages or StageSeconds()
        first, count = int(batch.sample_index[0]), len(batch)
        plan = self._plan
        with stages.timed("latents"):
            stored = replace(
                batch,
                labels=batch.labels if "label" in plan.columns else None,
                latents=latents(plan.seed, first, count, plan.latent_dim) if plan.latent_dim else None,
            )
        if self._scores is None:
            return stored
        with stages.timed("forward"):
            classes = labels(plan.seed, first, count, self._num_classes, plan.labels) if self._num_classes else None
            return replace(stored, scores=self._scores.of(replace(batch, labels=classes)))


class _Scores:
    """A discriminator on a device."""

    def __init__(self, bundle: Bundle, plan: Plan, device: torch.device) -> None:
        seen = bundle.info.scorer.sha256 if bundle.info.scorer else None
        if seen != plan.scorer_sha256:
            raise BundleError(f"the plan was made for scorer {plan.scorer_sha256}, the bundle's is {seen}")
        self._family, networks = bundle.scorer()
        self._networks = networks.to(device)
        self._device, self._refusals = device, memory_refusals(device)
        self._size = plan.numerics.micro_batch
        self._num_threads = plan.numerics.threads

    @torch.inference_mode()
    def of(self, batch: SampleBatch) -> Float32Array:
        """Scores, float32 [N]. Raises BundleError where one is not finite."""
        found = []
        first, stop = int(batch.sample_index[0]), int(batch.sample_index[-1]) + 1
        for start in range(first // self._size * self._size, stop, self._size):
            lower, upper = max(first, start), min(stop, start + self._size)
            # Always as many rows, and each sample in its own: kernels are chosen by size, and that decides bits.
            pixels = np.zeros((self._size, *batch.pixels.shape[1:]), np.uint8)
            pixels[lower - start : upper - start] = batch.pixels[lower - first : upper - first]
            images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
            classes = None
            if batch.labels is not None:
                rows = np.zeros(self._size, np.int64)
                rows[lower - start : upper - start] = batch.labels[lower - first : upper - first]
                classes = torch.from_numpy(rows).to(self._device)
            with threads(self._num_threads):
                scores = self._family.score(self._networks, images, classes).cpu().numpy()
            found.append(scores[lower - start : upper - start])
        check_memory(self._device, self._refusals)
        joined = np.concatenate(found)
        if not np.isfinite(joined).all():
            row = int(np.flatnonzero(~np.isfinite(joined))[0])
            raise BundleError(f"the score of sample {first + row} is not finite; the discriminator has diverged")
        return joined
