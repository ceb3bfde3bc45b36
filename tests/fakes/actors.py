"""Small actors for the pool: their shards are receipts and nothing else, and some of them fail on purpose.

They lie in a module because Ray's workers import them by name.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

import ray

from genworker.bulk.records import Receipt
from genworker.errors import DeterminismError, SourceError

if TYPE_CHECKING:
    from genworker.bulk.plan import Task


def receipt_for(task: Task, attempt: int) -> Receipt:
    """The receipt of a shard that nobody made."""
    return Receipt(
        shard_index=task.shard_index,
        num_samples=task.num_samples,
        num_bytes=1 + task.shard_index,
        sha256=f"{task.shard_index:064x}",
        attempt=attempt,
    )


class Steady:
    """Makes every shard; the later a shard's index, the sooner it is done."""

    def make(self, task: Task, attempt: int) -> Receipt:
        time.sleep(0.02 * (task.shard_index % 3 == 0))
        return receipt_for(task, attempt)

    def echo(self, value: object) -> object:
        """Give ``value`` back."""
        return value

    def gpus(self) -> list[int]:
        """Ids of the GPUs that Ray gave this actor."""
        return list(ray.get_gpu_ids())

    def refuse(self) -> NoReturn:
        """Fail as our own code does."""
        raise SourceError("refused")


class Idle(Steady):
    """Makes every shard at once."""

    def make(self, task: Task, attempt: int) -> Receipt:
        return receipt_for(task, attempt)


class Raising(Steady):
    """Fails ``times`` times at every shard whose index is a multiple of four, with ``error``."""

    def __init__(self, times: int, error: type[Exception] = ValueError) -> None:
        self._times, self._error = times, error

    def make(self, task: Task, attempt: int) -> Receipt:
        if task.shard_index % 4 == 0 and attempt < self._times:
            raise self._error(f"no luck at attempt {attempt}")
        return super().make(task, attempt)


class Hopeless(Steady):
    """Meets a wall at shard 3 that no other attempt can pass."""

    def make(self, task: Task, attempt: int) -> Receipt:
        if task.shard_index == 3:
            raise DeterminismError(f"{task.key}: other bytes at attempt {attempt}")
        return super().make(task, attempt)


class Dying(Steady):
    """Is killed while it makes one of ``shards``, as often as attempts below ``times`` are made."""

    def __init__(self, shards: tuple[int, ...], times: int = 1) -> None:
        self._shards, self._times = shards, times

    def make(self, task: Task, attempt: int) -> Receipt:
        if task.shard_index in self._shards and attempt < self._times:
            # The receipt of the shard before may still be on its way, and would be lost with the process.
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(task, attempt)


class Straggling(Steady):
    """Sleeps so many ``seconds`` over attempts, by (shard, attempt), and makes other bytes in ``wrong`` ones."""

    def __init__(self, seconds: dict[tuple[int, int], float], wrong: tuple[tuple[int, int], ...] = ()) -> None:
        self._seconds, self._wrong = seconds, wrong

    def make(self, task: Task, attempt: int) -> Receipt:
        time.sleep(self._seconds.get((task.shard_index, attempt), 0.01))
        receipt = receipt_for(task, attempt)
        is_wrong = (task.shard_index, attempt) in self._wrong
        return receipt.model_copy(update={"sha256": "f" * 64}) if is_wrong else receipt


class BrokenFromTheStart(Steady):
    """Its constructor raises, as one does that cannot read its bundle."""

    def __init__(self) -> None:
        raise SourceError("cannot be set up: nothing is here")


class DeadFromTheStart(Steady):
    """Its process ends in the constructor, as one does that runs out of memory there."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
