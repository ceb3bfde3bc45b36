"""What happens when a run diverges: back to its last good checkpoint with another seed, or the end with what was seen.

In: a trainer, the run's store, its watchdog, and on rank 0 the recorder. Out: the trainer where it was, or an error. All ranks
call the same function at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from genworker.errors import DivergedError
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.recorder import Recorder
from genworker.training.step import Trainer
from genworker.training.watchdog import Alarm, Watchdog


def roll_back(
    trainer: Trainer, store: Store, watchdog: Watchdog, recorder: Recorder | None, tell: Callable[[Alarm], None]
) -> None:
    """Go back to the last good checkpoint, or to the start, with another seed; rank 0 records it and tells it."""
    spec, group, before = trainer.spec, trainer.group, replace(trainer.state.counters)
    target = -1
    if recorder is not None:
        recorder.wait()
        target = recorder.last_good()
    target = group.from_first(target)
    if target >= 0:
        key = checkpoint.key_of(target)
        checkpoint.restore(checkpoint.read(store, key), trainer.state, spec, f"{store.url}/{key}")
    else:
        trainer.reset()
    counters = trainer.state.counters
    counters.rollbacks, counters.nonfinite_steps = before.rollbacks + 1, before.nonfinite_steps
    counters.skipped_steps = before.skipped_steps
    watchdog.rolled_back(counters.nonfinite_steps)
    if recorder is not None:
        where = f"the checkpoint of image {target}" if target >= 0 else "the start, as there is no good checkpoint"
        alarm = Alarm(
            before.images_seen,
            "rollback",
            f"the run diverged; rollback {counters.rollbacks} of {spec.watchdog.max_rollbacks} goes back to {where}, "
            f"with another seed and {spec.watchdog.rollback_lr_scale**counters.rollbacks:g} times the learning rate",
        )
        recorder.alarm(alarm)
        tell(alarm)
        recorder.take_back(trainer, watchdog.dump())


def give_up(trainer: Trainer, store: Store, watchdog: Watchdog, recorder: Recorder | None) -> NoReturn:
    """End a run that diverged once too often. Raises DivergedError with the last alarms and the last good checkpoint."""
    counters = trainer.state.counters
    seen = "\n  ".join(str(alarm) for alarm in watchdog.alarms[-8:])
    last = "there is no good checkpoint"
    if recorder is not None:
        recorder.wait()
        if (good := recorder.last_good()) >= 0:
            last = f"the last good checkpoint is {checkpoint.key_of(good)}"
        recorder.alarm(Alarm(counters.images_seen, "gave_up", "the run diverged again and was stopped"))
        recorder.flush_alarms()
    raise DivergedError(
        f"{store.url}: the run diverged at image {counters.images_seen} after {counters.rollbacks} rollbacks "
        f"(watchdog.max_rollbacks {trainer.spec.watchdog.max_rollbacks}); {last}. What was seen:\n  {seen}"
    )
