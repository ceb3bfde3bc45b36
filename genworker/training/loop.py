"""The training loop of one worker: batches in, checkpoints, metrics and a bundle out. Knows nothing of Ray.

The same function runs alone, or as one of many workers of an initialised torch process group. It is resumed by being
called again with the same store. It never hides a step that went wrong: a non-finite gradient is counted and skipped, and
too many end the run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor

import genworker
from genworker import families
from genworker.bundle import Bundle, Lineage
from genworker.config import canonical_json
from genworker.device import resolve_precision
from genworker.errors import CheckpointError, ObjectExistsError, ObjectMissingError, TrainingError, UsageError
from genworker.families.base import Batch, Phase
from genworker.sampling.latents import Stream, normals
from genworker.sources.base import Source
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.collectives import WorkerGroup
from genworker.training.ema import WeightAverage
from genworker.training.loader import Loader, LoaderBatch, rank_slice
from genworker.training.spec import TrainSpec, spec_differences

SPEC_KEY = "spec.json"
METRICS_KEY = "metrics.jsonl"
BUNDLE_PREFIX = "bundle/"
NOISE_STREAMS_PER_PHASE = 16

Metrics = dict[str, float]


@dataclass(frozen=True)
class Hooks:
    """How a run talks to whoever started it.

    Attributes:
        on_report: called on every rank with the run's metrics; only rank 0's hold averages over a report interval.
        should_stop: asked on rank 0 at every report; True makes all ranks save a checkpoint and return.
    """

    on_report: Callable[[Metrics], None] = lambda _metrics: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: ``finished`` is False when it was asked to stop; it can be resumed."""

    finished: bool
    images_seen: int
    metrics: Metrics


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
class _Meter:
    """Averages since the last report, and the time they took."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited_before: float = 0.0

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach().float()
        self.counts[name] = self.counts.get(name, 0) + 1

    def averages(self) -> Metrics:
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

    def step(self, batch: LoaderBatch, meter: _Meter) -> None:
        """Run all phases on this worker's part of one global batch and advance the counters."""
        counters, context = self.state.counters, self._context
        context.progress = counters.images_seen / self.spec.training.images
        context.first_draw, context.num_draws = int(batch.draws[0]), len(batch.draws)
        labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
        local = Batch(batch.images.to(self.device, non_blocking=True), labels)
        for index, phase in enumerate(self.phases):
            context.stream_base = Stream.TRAINING + index * NOISE_STREAMS_PER_PHASE
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

    def _apply(self, phase: Phase, meter: _Meter) -> None:
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


def train(
    spec: TrainSpec, source: Source, store: Store, *, rank: int, world_size: int, device: torch.device, hooks: Hooks
) -> TrainResult:
    """Train until ``spec.training.images`` images were seen, from the newest checkpoint in ``store`` if there is one.

    Args:
        spec: the run.
        source: opened alike on every worker.
        store: checkpoints, metrics.jsonl and spec.json go here; only rank 0 writes.
        rank: of this worker.
        world_size: number of workers; above 1, torch's default process group must be initialised.
        device: to compute on.
        hooks: progress out, stop requests in.

    Returns:
        How the run ended. A finished run leaves its bundle below ``bundle/``.

    Raises:
        TrainingError: too many steps had a non-finite gradient.
        CheckpointError: the store holds a run of another spec.
        SourceError, StoreError: data or storage failed.
    """
    trainer = Trainer(spec, source, rank, world_size, device)
    resume(trainer, store)
    counters, settings = trainer.state.counters, spec.training
    history = _History(store, counters.images_seen) if rank == 0 else None
    meter, metrics, saved = _Meter(), history.last() if history is not None else Metrics(), counters.images_seen
    next_report = _next_multiple(settings.report_every_images, counters.images_seen)
    stop = False
    with Loader(
        source,
        batch_size=settings.batch_size,
        seed=spec.seed,
        rank=rank,
        world_size=world_size,
        start=counters.images_seen,
    ) as loader:
        while counters.images_seen < settings.images and not stop:
            trainer.step(next(loader), meter)
            done = counters.images_seen >= settings.images
            if counters.images_seen >= next_report or done:
                metrics = _summary(trainer, meter, loader.wait_seconds, len(source.corrupt))
                hooks.on_report(metrics)
                stop = trainer.group.broadcast_flag(hooks.should_stop())
                meter = _Meter(waited_before=loader.wait_seconds)
                next_report = _next_multiple(settings.report_every_images, counters.images_seen)
                if history is not None:
                    history.append(metrics)
            if history is not None and (
                done or stop or counters.images_seen - saved >= settings.checkpoint_every_images
            ):
                history.flush()
                checkpoint.save(store, trainer.state, spec.spec_id)
                checkpoint.prune(store, settings.keep_checkpoints)
                saved = counters.images_seen
    finished = counters.images_seen >= settings.images
    if finished and rank == 0:
        pack_bundle(trainer, source, metrics).save(store, BUNDLE_PREFIX)
    return TrainResult(finished, counters.images_seen, metrics)


def _next_multiple(interval: int, images_seen: int) -> int:
    """Where the next report is due: on a grid of its own, so that a resumed run reports where an unbroken one does."""
    return (images_seen // interval + 1) * interval


def pack_bundle(trainer: Trainer, source: Source, metrics: Metrics) -> Bundle:
    """The weight average of a run as a bundle, with its lineage."""
    spec = trainer.spec
    lineage = Lineage(
        source=spec.data.name if spec.data.url is None else f"{spec.data.name} {spec.data.url}",
        source_digest=source.digest(),
        spec=spec.model_dump(mode="json"),
        images_seen=trainer.state.counters.images_seen,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        versions={"genworker": genworker.__version__, "torch": torch.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Bundle.pack(spec.family, source.schema, trainer.average.networks, lineage)


def claim(spec: TrainSpec, store: Store) -> None:
    """Write spec.json, or check that the one there is of the same run. Raises CheckpointError with the differences."""
    try:
        store.put(SPEC_KEY, canonical_json(spec.model_dump(mode="json")).encode())
    except ObjectExistsError as err:
        theirs = _stored_spec(store)
        if theirs.spec_id != spec.spec_id:
            lines = "\n  ".join(spec_differences(spec.identity(), theirs.identity()))
            raise CheckpointError(
                f"{store.url} holds another run; train into another URL, or run the same spec to resume it. "
                f"Differences:\n  {lines}"
            ) from err


def _stored_spec(store: Store) -> TrainSpec:
    try:
        return TrainSpec.parse(json.loads(store.get(SPEC_KEY)), origin=f"{store.url}/{SPEC_KEY}")
    except (ValueError, UsageError) as err:
        raise CheckpointError(
            f"{store.url}/{SPEC_KEY} is damaged or of another version of genworker, so the run here cannot be resumed; "
            f"train into another URL: {err}"
        ) from err


def resume(trainer: Trainer, store: Store) -> list[str]:
    """Load the newest whole checkpoint, if any; returns the damaged ones that were passed over."""
    skipped: list[str] = []
    checkpoint.load_latest(store, trainer.state, trainer.spec.spec_id, skipped)
    return skipped


def _summary(trainer: Trainer, meter: _Meter, waited: float, num_corrupt: int) -> Metrics:
    seconds = time.perf_counter() - meter.started
    return {
        "images_seen": trainer.state.counters.images_seen,
        **meter.averages(),
        "images_per_second": meter.images / seconds,
        "data_wait_share": (waited - meter.waited_before) / seconds,
        "nonfinite_steps": trainer.state.counters.nonfinite_steps,
        "corrupt_images": num_corrupt,
        "seconds": seconds,
    }


class _History:
    """metrics.jsonl: one line per report. Written whole with each checkpoint, so that both tell the same story."""

    def __init__(self, store: Store, images_seen: int) -> None:
        self._store = store
        self._lines = [line for line in read_metrics(store) if line["images_seen"] <= images_seen]

    def append(self, metrics: Metrics) -> None:
        self._lines.append(metrics)

    def last(self) -> Metrics:
        """The last report, or none."""
        return self._lines[-1] if self._lines else {}

    def flush(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._store.put(METRICS_KEY, text.encode(), overwrite=True)


def read_metrics(store: Store) -> list[Metrics]:
    """The reports of a run in order, each a mapping of names to numbers; empty when there is none yet."""
    try:
        text = store.get(METRICS_KEY).decode()
    except ObjectMissingError:
        return []
    return [json.loads(line) for line in text.splitlines()]
