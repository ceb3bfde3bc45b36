"""Attempts at tasks: which task is given out next, what a failure means, and which of two attempts counts.

In: tasks, receipts and errors. Out: attempts to be made, and one receipt per task: the first. It knows no Ray and no actor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from genworker.bulk.plan import Task
from genworker.bulk.progress import Event
from genworker.bulk.records import Receipt
from genworker.bulk.speculation import Stragglers
from genworker.bulk.tally import Tally
from genworker.errors import (
    BundleError,
    DeterminismError,
    GenworkerError,
    JobError,
    PlanError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    UsageError,
)

# Another attempt would meet the same wall.
_HOPELESS = (BundleError, DeterminismError, PlanError, StoreAccessError, StoreFullError, UsageError)

# How long a task that failed waits for another actor than the one that failed at it.
_SECONDS_FOR_OTHERS = 20.0


@dataclass(eq=False)
class _Work:
    """One task on its way to a receipt.

    ``trail`` holds its attempts, ``failed_at`` is where the last one failed, if that may be due to the place.
    """

    task: Task
    failures: int = 0
    failed_at: str = ""
    failed_since: float = 0.0
    running: list[Attempt] = field(default_factory=list)
    trail: list[Attempt] = field(default_factory=list)
    receipt: Receipt | None = None


@dataclass(eq=False)
class Attempt:
    """One try at a task. ``number`` is how many came before it, ``where`` names the actor."""

    work: _Work
    number: int
    given_at: float
    where: str = ""

    @property
    def task(self) -> Task:
        """What is to be made."""
        return self.work.task

    def __str__(self) -> str:
        return f"attempt {self.number} by the actor on {self.where}"


class Attempts:
    """The attempts of one pool.

    Args:
        max_attempts: how often one task may fail.
        on_event: told in one line of every failure.
        tally: counts them.
        stragglers: says from when on a running task is given out a second time.
    """

    def __init__(
        self, max_attempts: int, on_event: Callable[[str], None], tally: Tally, stragglers: Stragglers
    ) -> None:
        self._max_attempts, self._on_event, self._tally, self._stragglers = max_attempts, on_event, tally, stragglers
        self._fresh: Iterator[Task] = iter(())
        self._again: deque[_Work] = deque()
        self._open: dict[_Work, None] = {}
        self.num_running = 0

    def begin(self, tasks: Iterator[Task]) -> None:
        """Take more tasks; they are drawn one by one, when they are given out."""
        self._fresh = tasks

    def all_done(self) -> bool:
        """Whether every task has its receipt; where none is open, the next is drawn to find out, which needs no actor."""
        if not self._open and (work := self._draw()) is not None:
            self._again.append(work)
        return not self._open

    def forget_waiting(self) -> None:
        """Give out nothing more."""
        self._fresh = iter(())
        self._again.clear()

    @property
    def some_wait(self) -> bool:
        """Whether there are tasks that are to be given out again."""
        return bool(self._again)

    def next(self, *, idle: bool, where: str = "", alone: bool = True) -> Attempt | None:
        """The next attempt for the actor at ``where``: a task that failed, a fresh one, or if ``idle`` the slowest of others.

        Unless it is ``alone``, it is not given the task that failed there last, for some time: the others may be stuck.
        """
        work = self._take_waiting("" if alone else where) or self._draw()
        if work is None and idle:
            work = self._straggler()
            if work is not None:
                self._tally.count("shards_speculative")
                slow = work.running[0]
                text = f"{work.task.key}: {slow} takes long, so a second one begins"
                self._on_event(Event(text, work.task.key, slow.number))
        if work is None:
            return None
        attempt = Attempt(work, len(work.trail), time.monotonic())
        work.running.append(attempt)
        work.trail.append(attempt)
        self.num_running += 1
        return attempt

    def succeeded(self, attempt: Attempt, receipt: Receipt) -> Receipt | None:
        """Take a receipt; returns it if it is the task's first.

        Raises:
            DeterminismError: it differs from the first.
        """
        work = attempt.work
        self._end(attempt)
        self._stragglers.finished(time.monotonic() - attempt.given_at)
        self._tally.attempt(receipt)
        if work.receipt is None:
            work.receipt = receipt
            del self._open[work]
            self._tally.committed(receipt)
            return receipt
        if receipt.sha256 != work.receipt.sha256:
            raise DeterminismError(
                f"{work.task.key}: two attempts gave different bytes, SHA-256 {work.receipt.sha256} and {receipt.sha256}"
                f"{_trail(work)}; one plan must give one result: find out which machine differs "
                "(`genworker verify --resample`)"
            )
        return None

    def failed(self, attempt: Attempt, cause: Exception) -> None:
        """Take an error; the task is given out again unless another attempt at it is running or has succeeded.

        Raises:
            GenworkerError: ``cause``, if no other attempt can mend it.
            JobError: the task failed too often.
        """
        work = attempt.work
        self._end(attempt)
        if isinstance(cause, DeterminismError) and len(work.trail) > 1:
            raise DeterminismError(f"{cause}{_trail(work)}") from cause
        if isinstance(cause, _HOPELESS):
            raise cause
        self._tally.count("shards_failed")
        work.failures += 1
        if not isinstance(cause, StoreError):  # which is no actor's fault
            work.failed_at, work.failed_since = attempt.where, time.monotonic()
        what = str(cause) if isinstance(cause, GenworkerError) else f"{type(cause).__name__}: {cause}"
        if work.receipt is None and not work.running and work.failures >= self._max_attempts:
            raise JobError(
                f"{work.task.key}: failed {work.failures} times, the last time with: {what}; the dataset is not "
                "published, what was made stays: mend the cause and run the same command again"
            ) from cause
        text = f"{work.task.key}: attempt {work.failures} of {self._max_attempts} failed: {what}"
        self._on_event(Event(text, work.task.key, attempt.number))
        if work.receipt is None and not work.running:
            self._again.append(work)

    def put_back(self, attempts: Iterable[Attempt], *, begun: bool) -> None:
        """Take back what an actor was given and did not fail at; it counts as no failure of the tasks.

        Whatever was ``begun`` may have been stored before the actor went, so it is remembered and its number not given again.
        """
        for attempt in reversed(list(attempts)):
            work = attempt.work
            self._end(attempt)
            if not begun:
                work.trail.remove(attempt)
            if work.receipt is None and not work.running:
                self._again.appendleft(work)

    def _take_waiting(self, where: str) -> _Work | None:
        late = time.monotonic() - _SECONDS_FOR_OTHERS
        fit = (work for work in self._again if not where or work.failed_at != where or work.failed_since < late)
        work = next(fit, None)
        if work is not None:
            self._again.remove(work)
        return work

    def _draw(self) -> _Work | None:
        task = next(self._fresh, None)
        if task is None:
            return None
        work = _Work(task)
        self._open[work] = None
        return work

    def _straggler(self) -> _Work | None:
        limit = self._stragglers.limit
        alone = [work for work in self._open if len(work.running) == 1]
        if limit is None or not alone:
            return None
        slowest = min(alone, key=lambda work: work.running[0].given_at)
        return slowest if time.monotonic() - slowest.running[0].given_at > limit else None

    def _end(self, attempt: Attempt) -> None:
        attempt.work.running.remove(attempt)
        self.num_running -= 1


def _trail(work: _Work) -> str:
    return f" ({'; '.join(str(attempt) for attempt in work.trail)})"
