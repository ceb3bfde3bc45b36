"""One training step of one worker: losses of each phase, one all-reduce, one optimizer step.

In: a spec, a rank, batches. Out: networks, optimizers and counters that moved on. A step that went wrong is never hidden: a
non-finite gradient is counted and skipped, and too many end the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genworker import families
from genworker.device import resolve_precision
from genworker.errors import TrainingError
from genworker.families.base import Batch, Phase
from genworker.sampling.latents import Stream, normals
from genworker.sources.base import Source
from genworker.training import checkpoint
from genworker.training.collectives import WorkerGroup
from genworker.training.ema import WeightAverage
from genworker.training.loader import LoaderBatch, rank_slice
from genworker.training.spec import TrainSpec

_NOISE_STREAMS_PER_PHASE = 16


@dataclass
class _Context:
    """What losses see of the loop; see `genworker.families.base.StepContext`."""

    seed: int
    group: WorkerGroup
    device: torch.device
    progress: float = 0.0
    first_draw: int = 0
    num_draws: int = 0
    stream_base: int = 0

    def noise(self, stream: int, dim: int) -> Tensor:
        numbers = normals(self.seed, self.stream_base + stream, self.first_draw, self.num_draws, dim)
        return torch.from_numpy(numbers).to(self.device)

    def global_mean(self, value: Tensor) -> Tensor:
        return self.group.mean(value)


@dataclass
class Meter:
    """Averages since the last report, and the time they took."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited_before: float = 0.0

    def add(self, name: str, value: Tensor) -> None:
        """Take one value of a scalar."""
        self.sums[name] = self.sums.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach().float()
        self.counts[name] = self.counts.get(name, 0) + 1

    def averages(self) -> dict[str, float]:
        """The mean of each scalar since this meter was made."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


class Trainer:
    """One worker's networks, optimizers and counters, and how to make one training step with them."""

    def __init__(self, spec: TrainSpec, source: Source, rank: int, world_size: int, device: torch.device) -> None:
        self.spec = spec
        part = rank_slice(spec.training.batch_size, rank, world_size)
        self.group = WorkerGroup(rank, world_size, (part.stop - part.start) / spec.training.batch_size)
        self.device = device
        self.family = families.make(spec.family, source.schema)
        # Every worker draws the same initial weights; nothing else uses torch's global generator.
        torch.manual_seed(spec.seed)
        networks = self.family.build()
        self.networks = networks.to(device)
        self.average = WeightAverage(self.networks, self.family.served, spec.family)
        self.phases = self.family.phases()
        self.optimizers = {
            phase.name: torch.optim.Adam(self._parameters(phase), lr=0.0, betas=phase.betas, eps=phase.eps, fused=True)
            for phase in self.phases
        }
        self.state = checkpoint.TrainingState(
            self.networks, self.average.networks, self.optimizers, checkpoint.Counters()
        )
        self.dtype = resolve_precision(spec.training.precision, device)
        self._context = _Context(spec.seed, self.group, device)

    def _parameters(self, phase: Phase) -> list[torch.nn.Parameter]:
        return [parameter for name in phase.networks for parameter in self.networks[name].parameters()]

    def step(self, batch: LoaderBatch, meter: Meter) -> None:
        """Run all phases on this worker's part of one global batch and advance the counters."""
        counters, context = self.state.counters, self._context
        context.progress = counters.images_seen / self.spec.training.images
        context.first_draw, context.num_draws = int(batch.draws[0]), len(batch.draws)
        labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
        local = Batch(batch.images.to(self.device, non_blocking=True), labels)
        for index, phase in enumerate(self.phases):
            context.stream_base = Stream.TRAINING + index * _NOISE_STREAMS_PER_PHASE
            for name, values in self.compute_gradients(phase, local).items():
                meter.add(f"{phase.name}.{name}", values)
            self._apply(phase, meter)
        counters.images_seen = batch.images_seen
        self.average.update(self.spec.training.batch_size, counters.images_seen)
        meter.images += self.spec.training.batch_size

    def compute_gradients(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradient of the global batch's mean loss in ``.grad`` of the phase's parameters; return its losses."""
        for name, network in self.networks.items():
            network.requires_grad_(name in phase.networks)
        self.optimizers[phase.name].zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            losses = phase.loss(self.networks, batch, self._context)
        torch.autograd.backward(losses["loss"] * self.group.share)
        self._flat_gradient = self.group.sum_gradients(self._parameters(phase))
        return losses

    def _apply(self, phase: Phase, meter: Meter) -> None:
        counters = self.state.counters
        norm = self._flat_gradient.norm()
        meter.add(f"{phase.name}.grad_norm", norm)
        if not torch.isfinite(norm):
            counters.nonfinite_steps += 1
            if counters.nonfinite_steps > self.spec.training.max_nonfinite_steps:
                raise TrainingError(
                    f"phase {phase.name}: {counters.nonfinite_steps} steps had a non-finite gradient by image "
                    f"{counters.images_seen}, more than training.max_nonfinite_steps "
                    f"{self.spec.training.max_nonfinite_steps}; lower family.lr, raise family.gamma for a GAN, or set "
                    "training.precision float32"
                )
            return
        if phase.clip_norm is not None and norm > phase.clip_norm:
            self._flat_gradient.mul_(phase.clip_norm / norm)
        for group in self.optimizers[phase.name].param_groups:
            group["lr"] = self.spec.family.lr.at(self._context.progress)
        self.optimizers[phase.name].step()
