"""The training loop of one worker: batches in, checkpoints, metrics and a bundle out. Knows nothing of Ray.

The same function runs alone, or as one of many workers of an initialised torch process group. It is resumed by being
called again with the same store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import genworker
from genworker.bundle import Bundle, Lineage
from genworker.errors import CheckpointError
from genworker.sources.base import Source
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.loader import Loader
from genworker.training.record import BUNDLE_PREFIX, History, Metrics
from genworker.training.spec import TrainSpec
from genworker.training.step import Meter, Trainer


@dataclass(frozen=True)
class Hooks:
    """How a run talks to whoever started it.

    Attributes:
        on_report: called on every rank with the run's metrics; only rank 0's hold averages over a report interval.
        on_event: told on rank 0, in one line, of what went wrong and was dealt with.
        should_stop: asked on rank 0 at every report; True makes all ranks save a checkpoint and return.
    """

    on_report: Callable[[Metrics], None] = lambda _metrics: None
    on_event: Callable[[str], None] = lambda _text: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: ``finished`` is False when it was asked to stop; it can be resumed."""

    finished: bool
    images_seen: int
    metrics: Metrics


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
    for damaged in resume(trainer, store):
        hooks.on_event(f"passed over a damaged checkpoint, {damaged}")
    counters, settings = trainer.state.counters, spec.training
    history = History(store, counters.images_seen) if rank == 0 else None
    meter, metrics, saved = Meter(), history.last() if history is not None else Metrics(), counters.images_seen
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
                stop = bool(trainer.group.from_first(int(hooks.should_stop())))
                meter = Meter(waited_before=loader.wait_seconds)
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


def resume(trainer: Trainer, store: Store) -> list[str]:
    """Load the newest whole checkpoint, if any; returns the damaged ones that were passed over.

    Raises:
        CheckpointError: the checkpoint is of another spec, or another one than rank 0 found.
    """
    skipped: list[str] = []
    checkpoint.load_latest(store, trainer.state, trainer.spec.spec_id, skipped)
    here = trainer.state.counters.images_seen
    first = trainer.group.from_first(here)
    if here != first:
        raise CheckpointError(
            f"{store.url}: rank {trainer.group.rank} found a checkpoint of {here} images, rank 0 one of {first}; another run "
            "writes to the same URL: stop it, then run the command again"
        )
    return skipped


def _summary(trainer: Trainer, meter: Meter, waited: float, num_corrupt: int) -> Metrics:
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
