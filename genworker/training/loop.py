"""The training loop of one worker: batches in, checkpoints, metrics and a bundle out. Knows nothing of Ray.

The same function runs alone, or as one of many workers of an initialised torch process group. It is resumed by being
called again with the same store. A run that diverges goes back to its last good checkpoint with another seed, a few times.
"""

from __future__ import annotations

import time

import torch

from genworker.device import threads
from genworker.sources.base import Source, some_of
from genworker.stores.base import Store
from genworker.training import rollback
from genworker.training.examine import Examiner
from genworker.training.hooks import Hooks, Metrics, News, TrainResult
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.order import held_out_indices
from genworker.training.packing import pack_bundle
from genworker.training.record import BUNDLE_PREFIX
from genworker.training.recorder import Recorder
from genworker.training.resume import resume
from genworker.training.spec import TrainSpec
from genworker.training.step import Trainer
from genworker.training.watchdog import Alarm, Verdict, Watchdog


def train(
    spec: TrainSpec,
    source: Source,
    store: Store,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    hooks: Hooks,
    local_size: int = 1,
) -> TrainResult:
    """Train until ``spec.training.images`` images were seen, from the newest checkpoint in ``store`` if there is one.

    Args:
        spec: the run.
        source: opened alike on every worker.
        store: checkpoints, reports, alarms and pictures go here; only rank 0 writes.
        rank: of this worker.
        world_size: number of workers; above 1, torch's default process group must be initialised.
        device: to compute on.
        hooks: progress out, stop requests in.
        local_size: number of workers on this machine.

    Returns:
        How the run ended. A finished run leaves its bundle below ``bundle/``.

    Raises:
        DivergedError: the run diverged more often than `WatchdogSpec.max_rollbacks`.
        TrainingError: a checkpoint could not be stored, or the weights are not finite at the end.
        CheckpointError: the store holds a run of another spec or of other data.
        SourceError, StoreError: data or storage failed.
    """
    run = _Run(Trainer(spec, source, rank, world_size, device), source, store, hooks, local_size)
    try:
        return run.train()
    finally:
        run.close()


class _Run:
    """One worker's part of a run."""

    def __init__(self, trainer: Trainer, source: Source, store: Store, hooks: Hooks, local_size: int) -> None:
        self.trainer, self.source, self.store, self.hooks = trainer, source, store, hooks
        self.spec, self.group, self.local_size = trainer.spec, trainer.group, local_size
        spec = trainer.spec
        snapshot = resume(self.trainer, store, hooks.on_event)
        self.examiner = Examiner(self.trainer, source) if self.group.rank == 0 else None
        self.watchdog = Watchdog(
            spec.watchdog, self.trainer.family.bands(), self.trainer.state.counters.nonfinite_steps
        )
        self.meter = Meter()
        if snapshot is not None:
            self.watchdog.load(snapshot.watchdog)
            self.meter.load(snapshot.meter, self.group.rank, self.group.world_size)
        self.corrupt_told = 0
        self.recorder: Recorder | None = None
        self.metrics: Metrics = {}
        if self.group.rank == 0:
            self.recorder = Recorder(self.trainer, store, on_event=hooks.on_event, on_checkpoint=hooks.on_checkpoint)
            self.metrics = self.recorder.last_report()

    @property
    def images_seen(self) -> int:
        return self.trainer.state.counters.images_seen

    def train(self) -> TrainResult:
        """Train to the end, to a stop, or until the watchdog gives up."""
        verdict = Verdict.GO_ON
        while self.images_seen < self.spec.training.images and verdict in (Verdict.GO_ON, Verdict.ROLL_BACK):
            verdict = self._stretch()
            if verdict == Verdict.ROLL_BACK:
                rollback.roll_back(
                    self.trainer, self.store, self.watchdog, self.recorder, lambda alarm: self._tell(alarm, "rollback")
                )
            elif verdict == Verdict.GIVE_UP:
                rollback.give_up(self.trainer, self.store, self.watchdog, self.recorder)
        if self.recorder is not None:
            self.recorder.wait()
        finished = self.images_seen >= self.spec.training.images
        if finished and self.recorder is not None:
            pack_bundle(self.trainer, self.source, self.metrics).save(self.store, BUNDLE_PREFIX)
        told = self.recorder.evaluations_told if self.recorder is not None else -1
        return TrainResult(finished, self.images_seen, self.metrics, told)

    def close(self) -> None:
        """End the threads."""
        if self.recorder is not None:
            self.recorder.close(hurried=self.images_seen < self.spec.training.images)

    def _stretch(self) -> Verdict:
        """Train until the end, a stop, or a divergence."""
        settings, trainer = self.spec.training, self.trainer
        micro = settings.micro_batch_size or settings.batch_size
        next_report = _next_multiple(settings.report_every_images, self.images_seen)
        next_checkpoint = _next_multiple(settings.checkpoint_every_images, self.images_seen)
        meter, self.meter = self.meter, Meter()
        with Loader(
            self.source,
            batch_size=micro,
            seed=trainer.seed,
            rank=self.group.rank,
            world_size=self.group.world_size,
            start=self.images_seen,
            unit=self.spec.family.unit,
            held_out=held_out_indices(len(self.source), settings.holdout_share),
            patience_seconds=settings.store_patience_seconds,
        ) as loader:
            verdict = Verdict.GO_ON
            while verdict == Verdict.GO_ON and self.images_seen < settings.images:
                trainer.wish, trainer.question = float(self.hooks.should_stop()), float(self.hooks.should_ask())
                trainer.step([next(loader) for _ in range(settings.batch_size // micro)], meter)
                if trainer.asked:
                    self.hooks.ask()
                done = self.images_seen >= settings.images
                if self.images_seen >= next_report or done:
                    began = time.perf_counter()
                    verdict = self._report(meter, loader)
                    # The time of this report belongs to the next one, which then accounts for all of it.
                    meter = Meter(started=began, waited_before=loader.wait_seconds)
                    meter.spent("report", began)
                    next_report = _next_multiple(settings.report_every_images, self.images_seen)
                if verdict == Verdict.GO_ON and trainer.stop_wished:
                    verdict = Verdict.STOP
                planned = self.images_seen >= next_checkpoint
                if (planned or done or verdict == Verdict.STOP) and verdict in (Verdict.GO_ON, Verdict.STOP):
                    next_checkpoint = _next_multiple(settings.checkpoint_every_images, self.images_seen)
                    self._save(meter, planned=planned)
        return verdict

    def _save(self, meter: Meter, *, planned: bool) -> None:
        """Store a checkpoint. A rollback goes to planned ones alone, so that a stop does not change where it goes."""
        began = time.perf_counter()
        seen = meter.dump(self.group.share, self.group.gather)
        if self.recorder is not None:
            good = planned and self.watchdog.good()
            self.recorder.save(self.trainer, self.watchdog.dump(), good=good, meter=seen)
        meter.spent("checkpoint", began)

    def _report(self, meter: Meter, loader: Loader) -> Verdict:
        """Gather what all ranks measured, let the watchdog judge it, tell everybody."""
        averages, seconds = dict(sorted(meter.averages().items())), time.perf_counter() - meter.started
        parts = meter.seconds | {"data_wait": loader.wait_seconds - meter.waited_before}
        counts = {"corrupt_images": self._tell_corrupt(), "data_retries": loader.retries}
        numbers = {"share": self.group.share, **averages, **parts, **counts}
        ranks = [
            dict(zip(numbers, row, strict=True)) for row in self.group.gather([float(x) for x in numbers.values()])
        ]
        verdict = Verdict.GO_ON
        if self.recorder is not None and self.examiner is not None:
            counters = self.trainer.state.counters
            # The other ranks wait meanwhile, so those of this machine do without their threads.
            with threads(torch.get_num_threads() * self.local_size):
                health = self.examiner.measure()
            busy = [sum(rank[part] for part in ("forward", "backward", "optimizer", "data_wait")) for rank in ranks]
            self.metrics = {
                "images_seen": counters.images_seen,
                **{name: sum(rank["share"] * rank[name] for rank in ranks) for name in averages},
                **health,
                "images_per_second": meter.images / seconds,
                **{f"{part}_share": sum(rank[part] for rank in ranks) / len(ranks) / seconds for part in parts},
                "worst_data_wait_share": max(rank["data_wait"] for rank in ranks) / seconds,
                "nonfinite_steps": counters.nonfinite_steps,
                "skipped_steps": counters.skipped_steps,
                "rollbacks": counters.rollbacks,
                **{name: int(sum(rank[name] for rank in ranks)) for name in counts},
                "seconds": seconds,
            }
            progress = counters.images_seen / self.spec.training.images
            steps = (meter.images_before + meter.images) // self.spec.training.batch_size
            diverged, alarms = self.watchdog.judge(self.metrics, progress, busy, steps)
            self.recorder.report(self.metrics, alarms)
            for alarm in alarms:
                self._tell(alarm, "alarm")
            if diverged:
                again = counters.rollbacks < self.spec.watchdog.max_rollbacks
                verdict = Verdict.ROLL_BACK if again else Verdict.GIVE_UP
        self.hooks.on_report(self.metrics)
        return Verdict(self.group.from_first(int(verdict)))

    def _tell_corrupt(self) -> int:
        """Name the images that this rank could not decode since it last did; returns how many there are in all."""
        new = self.source.corrupt[self.corrupt_told :]
        if new:
            named = some_of(new, 5)
            text = f"rank {self.group.rank} could not decode {len(new)} images and takes others in their place: {named}"
            self.hooks.on_own_event(News(text, "corrupt_images", images_seen=self.images_seen))
        self.corrupt_told += len(new)
        return self.corrupt_told

    def _tell(self, alarm: Alarm, kind: str) -> None:
        self.hooks.on_event(News(f"alarm {alarm}", kind, images_seen=alarm.images_seen, alarm=alarm.kind))


def _next_multiple(interval: int, images_seen: int) -> int:
    """Where the next report is due: on a grid of its own, so that a resumed run reports where an unbroken one does."""
    return (images_seen // interval + 1) * interval
