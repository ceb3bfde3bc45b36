"""What rank 0 keeps of a run beside training: reports, alarms, environment, pictures, checkpoints.

In: reports and the state of training. Out: objects in the run's store. It decides nothing about training; a failure to store
a checkpoint is the only one that it hands back.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

import genworker
from genworker.errors import CheckpointError
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.best import best_of, take_best_back
from genworker.training.callbacks.group import CLOSE_SECONDS, HURRIED_CLOSE_SECONDS, CallbackGroup
from genworker.training.hooks import Metrics
from genworker.training.pictures import key_of as picture_key
from genworker.training.pictures import png_bytes, sample_grid
from genworker.training.record import (
    ALARMS_KEY,
    ENVIRONMENT_KEY,
    METRICS_KEY,
    ROLLBACKS_KEY,
    Lines,
    evaluation_key,
    read_evaluations,
)
from genworker.training.step import Trainer
from genworker.training.upload import Uploader
from genworker.training.watchdog import Alarm

_PICTURE_SEED = 0  # the same latents in all runs
DIVERGED_PREFIX = "diverged/"  # reports that a rollback took back


class Recorder:
    """The files of one run, from where it starts or resumes.

    Attributes:
        evaluations_told: images seen at the newest evaluation that was handed to the callbacks here, or -1.
    """

    def __init__(
        self,
        trainer: Trainer,
        store: Store,
        *,
        on_event: Callable[[str], None],
        on_checkpoint: Callable[[str], None],
    ) -> None:
        spec, images_seen = trainer.spec, trainer.state.counters.images_seen
        self._store, self._spec = store, spec
        self._metrics = Lines(store, METRICS_KEY, images_seen)
        self._alarms = Lines(store, ALARMS_KEY)
        environment = Lines(store, ENVIRONMENT_KEY)
        environment.append(_environment(trainer))
        environment.flush()
        self._callbacks = CallbackGroup(spec.training.callbacks, store, spec, images_seen, on_event)
        self._looked_at = images_seen
        self.evaluations_told = -1
        resumed = checkpoint.key_of(images_seen) if images_seen else None
        self._uploader = Uploader(
            store,
            patience_seconds=spec.training.store_patience_seconds,
            keep=spec.training.keep_checkpoints,
            last_key=resumed,
            best=self._best,
            on_stored=on_checkpoint,
            on_event=on_event,
        )
        if resumed is not None:
            on_checkpoint(resumed)

    def last_report(self) -> Metrics:
        """The newest report, or an empty one."""
        return self._metrics.last()

    def report(self, metrics: Metrics, alarms: list[Alarm]) -> None:
        """Take a report and the alarms that it raised; both are stored with the next checkpoint."""
        self._metrics.append(metrics)
        self._callbacks.on_report(metrics)
        for alarm in alarms:
            self.alarm(alarm)

    def alarm(self, alarm: Alarm) -> None:
        """Take an alarm."""
        self._alarms.append(vars(alarm))
        self._callbacks.on_alarm(alarm.images_seen, alarm.text)

    def save(
        self, trainer: Trainer, watchdog: Mapping[str, Any], *, good: bool, meter: Mapping[str, Any] | None = None
    ) -> None:
        """Begin to store a checkpoint, all reports up to it, and a picture. Raises TrainingError where one before failed."""
        snapshot = checkpoint.take(trainer.state, self._spec, watchdog, good=good, meter=meter)
        metrics, alarms = self._metrics.text(), self._alarms.text()
        images_seen = trainer.state.counters.images_seen
        grid = sample_grid(trainer.average.networks, self._spec.family, trainer.family.schema, _PICTURE_SEED)
        self._callbacks.on_picture(images_seen, grid)

        def first() -> None:
            self._metrics.flush(metrics)
            if alarms:
                self._alarms.flush(alarms)
            self._store.put(picture_key(images_seen), png_bytes(grid), overwrite=True)
            self._tell_evaluations()

        self._uploader.save(snapshot, first)
        self._callbacks.flush()

    def wait(self) -> None:
        """Wait until everything is stored. Raises TrainingError where it cannot be."""
        self._uploader.wait()

    def close(self, *, hurried: bool = False) -> None:
        """End the threads; ``hurried``, callbacks get a few seconds only."""
        self._uploader.close()
        self._callbacks.close(HURRIED_CLOSE_SECONDS if hurried else CLOSE_SECONDS)

    def flush_alarms(self) -> None:
        """Store reports and alarms now, without a checkpoint: the run ends here."""
        self._metrics.flush()
        self._alarms.flush()

    def last_good(self, before: int | None = None) -> int:
        """Images seen of the newest whole checkpoint (``before`` so many) that was made while nothing was amiss, or -1."""
        for key in checkpoint.keys(self._store):
            try:
                older = before is None or checkpoint.images_of(key) < before
                if older and checkpoint.read(self._store, key).good:
                    return checkpoint.images_of(key)
            except CheckpointError:
                continue
        return -1

    def take_back(self, trainer: Trainer, watchdog: Mapping[str, Any]) -> None:
        """After a rollback: drop what is newer, set its reports aside, store the new start.

        It has yet to prove good, unless it is the only place that another rollback could go to but the start.
        """
        counters = trainer.state.counters
        # First of all, so that an evaluation that is under way does not bring back what is dropped here.
        rollbacks = Lines(self._store, ROLLBACKS_KEY)
        rollbacks.append({"rollback": counters.rollbacks, "images_seen": counters.images_seen})
        rollbacks.flush()
        for key in checkpoint.keys(self._store):
            if checkpoint.images_of(key) > counters.images_seen:
                self._store.delete(key)
        for line in read_evaluations(self._store, after=counters.images_seen):
            self._store.delete(evaluation_key(line["images_seen"]))
        take_best_back(self._store, self._spec, trainer.family.schema, counters.images_seen)
        self._looked_at = min(self._looked_at, counters.images_seen)
        self.evaluations_told = min(self.evaluations_told, counters.images_seen)
        dropped = self._metrics.text()
        self._store.put(f"{DIVERGED_PREFIX}metrics-{counters.rollbacks}.jsonl", dropped, overwrite=True)
        self._metrics.cut(counters.images_seen)
        only = counters.images_seen > 0 and self.last_good(before=counters.images_seen) < 0
        self.save(trainer, watchdog, good=only)

    def _best(self) -> frozenset[int]:
        return frozenset(best_of(self._store, self._spec)[: self._spec.training.keep_best_checkpoints])

    def _tell_evaluations(self) -> None:
        """Hand what was measured beside training since the last checkpoint to the callbacks."""
        for line in read_evaluations(self._store, after=self._looked_at):
            self._callbacks.on_evaluation(line["images_seen"], line["metrics"])
            self._looked_at = self.evaluations_told = line["images_seen"]


def _environment(trainer: Trainer) -> dict[str, Any]:
    device = trainer.device
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_seen": trainer.state.counters.images_seen,
        "world_size": trainer.group.world_size,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": str(trainer.dtype).removeprefix("torch."),
        "host": platform.node(),
        "versions": {
            "genworker": genworker.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
