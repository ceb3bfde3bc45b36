"""One training step of one worker: losses of each phase, one sum of gradients, one optimizer step.

In: a spec, a rank, batches. Out: networks, optimizers and counters that moved on. A step that went wrong is never hidden: one
whose loss or gradient is not finite, or beyond the phase's bound, is skipped and counted, and too many roll back or end the
run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genworker import families
from genworker.device import resolve_precision
from genworker.families.base import Batch, Phase
from genworker.sampling.latents import Stream, normals, uniforms
from genworker.sources.base import Source
from genworker.training.collectives import WorkerGroup
from genworker.training.ema import WeightAverage
from genworker.training.gradients import GradientSum
from genworker.training.loader import LoaderBatch, rank_slice
from genworker.training.meter import Meter
from genworker.training.spec import TrainSpec
from genworker.training.state import Conditions, Counters, TrainingState

_NOISE_STREAMS_PER_PHASE = 16


@dataclass
class Context:
    """What losses see of the loop; see `genworker.families.base.StepContext`."""

    seed: int
    group: WorkerGroup
    device: torch.device
    batch_images: int = 0
    progress: float = 0.0
    first_draw: int = 0
    num_draws: int = 0
    stream_base: int = 0

    def noise(self, stream: int, dim: int) -> Tensor:
        """Standard normal [n, dim]; a function of seed, stream and the images' positions."""
        numbers = normals(self.seed, self.stream_base + stream, self.first_draw, self.num_draws, dim)
        return torch.from_numpy(numbers).to(self.device)

    def uniform(self, stream: int, dim: int) -> Tensor:
        """Uniform [n, dim] in [0, 1), addressed alike."""
        numbers = uniforms(self.seed, self.stream_base + stream, self.first_draw, self.num_draws, dim)
        return torch.from_numpy(numbers).to(self.device)

    def global_mean(self, value: Tensor) -> Tensor:
        """The mean over all workers' parts of the batch."""
        return self.group.mean(value)


def run_seed(seed: int, rollbacks: int) -> int:
    """The seed of noise and of the images' order after so many rollbacks, in [0, 2**63); the spec's own before the first."""
    if not rollbacks:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {rollbacks}".encode()).digest()[:8], "little") >> 1


class Trainer:
    """One worker's networks, optimizers and counters, and how to make one training step with them.

    Attributes:
        wish: set it to 1.0 from any thread to make all workers learn that this one wants to stop.
        stop_wished: whether any worker's wish was seen in the last step; the same on all workers.
        question: set it to 1.0 to make all workers learn that this one has a question for all.
        asked: whether any worker's question was seen in the last step; the same on all workers.
    """

    def __init__(self, spec: TrainSpec, source: Source, rank: int, world_size: int, device: torch.device) -> None:
        self.spec = spec
        self.family = families.make(spec.family, source.schema)
        micro = spec.training.micro_batch_size or spec.training.batch_size
        part = rank_slice(micro, rank, world_size, spec.family.unit)
        self.group = WorkerGroup(rank, world_size, (part.stop - part.start) / micro)
        self.device = device
        self.wish = self.question = 0.0
        self.stop_wished = self.asked = False
        # Every worker draws the same initial weights; nothing else uses torch's global generator.
        torch.manual_seed(spec.seed)
        self.networks = self.family.build().requires_grad_(False).to(device)
        self.average = WeightAverage(self.networks, self.family.served, spec.family)
        self.phases = self.family.phases()
        # Looked up once: walking through the modules several times a step took 1.3 ms of a small VAE's 80.
        self._parameters = {
            phase.name: [p for name in phase.networks for p in self.networks[name].parameters()]
            for phase in self.phases
        }
        self.optimizers = {
            phase.name: torch.optim.Adam(
                self._parameters[phase.name],
                lr=0.0,
                betas=(phase.beta1, phase.beta2.at(0.0)),
                eps=phase.eps,
                fused=True,
            )
            for phase in self.phases
        }
        precision = str(resolve_precision(spec.training.precision, device)).removeprefix("torch.")
        self.state = TrainingState(
            self.networks,
            self.average.networks,
            self.optimizers,
            Counters(),
            Conditions(source.digest(), len(source), precision),
        )
        self._context = Context(spec.seed, self.group, device, batch_images=micro)

    def reset(self) -> None:
        """Go back to before the first step, with the weights that the spec's seed gives."""
        torch.manual_seed(self.spec.seed)
        fresh = self.family.build()
        self.networks.load_state_dict(fresh.state_dict())
        self.average.networks.load_state_dict(
            {name: tensor for name, tensor in fresh.state_dict().items() if name.split(".")[0] in self.family.served}
        )
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        vars(self.state.counters).update(vars(Counters()))

    @property
    def dtype(self) -> torch.dtype:
        """Of convolutions; a checkpoint that is loaded, or rank 0, may have another one than this processor would choose."""
        return torch.bfloat16 if self.state.conditions.precision == "bfloat16" else torch.float32

    @property
    def seed(self) -> int:
        """The seed of noise and of the images' order, as rollbacks have changed it."""
        return run_seed(self.spec.seed, self.state.counters.rollbacks)

    def _train_only(self, phase: Phase) -> None:
        """Let the parameters of a phase have gradients, and those of no other network."""
        for parameter in itertools.chain.from_iterable(self._parameters.values()):
            parameter.requires_grad = False
        for parameter in self._parameters[phase.name]:
            parameter.requires_grad = True

    def step(self, batches: Sequence[LoaderBatch], meter: Meter) -> None:
        """Run all phases on this worker's parts of one global batch, one per micro-batch, and advance the counters."""
        counters, batch_size = self.state.counters, self.spec.training.batch_size
        self._context.seed = self.seed
        self._context.progress = counters.images_seen / self.spec.training.images
        step_index = counters.images_seen // batch_size
        for index, phase in enumerate(self.phases):
            if (step_index + 1) % phase.every:
                continue
            self._context.stream_base = Stream.TRAINING + index * _NOISE_STREAMS_PER_PHASE
            self.compute_gradients(phase, batches, meter)
            began = time.perf_counter()
            self._apply(phase, meter)
            meter.spent("optimizer", began)
        counters.images_seen = batches[-1].images_seen
        self.average.update(batch_size, counters.images_seen, self._context.progress)
        meter.images += batch_size

    def compute_gradients(self, phase: Phase, batches: Sequence[LoaderBatch], meter: Meter) -> None:
        """Leave the gradient of the global batch's mean loss in ``.grad`` of the phase's parameters."""
        self._train_only(phase)
        self.optimizers[phase.name].zero_grad(set_to_none=True)
        num_not_finite = torch.zeros(1, device=self.device)  # stays there until the gradients are summed
        self._losses: list[tuple[str, Tensor]] = []
        gradients = GradientSum(self.group, self._parameters[phase.name], num_votes=3)
        began = time.perf_counter()
        for number, batch in enumerate(batches, start=1):
            self._context.first_draw, self._context.num_draws = int(batch.draws[0]), len(batch.draws)
            with self.autocast():
                losses = phase.loss(self.networks, self.on_device(batch), self._context)
            began = meter.spent("forward", began)
            with gradients.last_backward() if number == len(batches) else contextlib.nullcontext():
                torch.autograd.backward(losses["loss"] * (self.group.share / len(batches)))
            self._losses += [(f"{phase.name}.{name}", values.detach()) for name, values in losses.items()]
            num_not_finite += ~torch.isfinite(losses["loss"].detach())
            began = meter.spent("backward", began)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)  # the votes are waited for next anyway
            began = meter.spent("backward", began)
        meter.move(self.group.take_waited(), "backward" if on_gpu else "forward", "all_reduce")
        votes = torch.cat([num_not_finite.new_tensor([self.wish, self.question]), num_not_finite])
        self._flat_gradient, sums = gradients.finish(votes)
        wishes, questions, self._num_not_finite = sums
        self.stop_wished, self.asked = wishes > 0, questions > 0
        meter.spent("all_reduce", began)

    def on_device(self, batch: LoaderBatch) -> Batch:
        """The images and labels of a loader's batch, where the networks are."""
        labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
        return Batch(batch.images.to(self.device, non_blocking=True), labels)

    def autocast(self) -> torch.autocast:
        """Convolutions and linear layers in bfloat16 inside the block, if that is the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _apply(self, phase: Phase, meter: Meter) -> None:
        counters = self.state.counters
        norm = self._flat_gradient.norm()
        taken = [*self._losses, (f"{phase.name}.grad_norm", norm)]
        # An infinite loss can have a finite gradient, so both are looked at.
        if self._num_not_finite or not torch.isfinite(norm):
            counters.nonfinite_steps += 1
            # Its numbers are in no mean: one of them would make the means of all other steps of the report NaN.
            meter.expect(name for name, _ in taken)
            return
        for name, value in taken:
            meter.add(name, value)
        if phase.skip_norm is not None and norm > phase.skip_norm:
            counters.skipped_steps += 1
            return
        if phase.clip_norm is not None and norm > phase.clip_norm:
            self._flat_gradient.mul_(phase.clip_norm / norm)
        progress = self._context.progress
        scale = phase.lr_scale * self.spec.watchdog.rollback_lr_scale**counters.rollbacks
        for group in self.optimizers[phase.name].param_groups:
            group["lr"] = self.spec.family.lr.at(progress) * scale
            group["betas"] = (phase.beta1, phase.beta2.at(progress))
        self.optimizers[phase.name].step()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds an infinity or a NaN."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
