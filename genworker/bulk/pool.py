"""A pool of Ray actors that works through tasks with a bounded window, and outlives the actors in it.

In: a way to start an actor, tasks. Out: receipts, in order of completion. Ray's own ActorPool neither retries nor replaces
a dead actor, and its automatic retries hide attempts; so attempts are counted here. No image passes through this module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from genworker.bulk.plan import Task
from genworker.bulk.records import Receipt
from genworker.errors import (
    BundleError,
    DeterminismError,
    GenworkerError,
    JobError,
    PlanError,
    StoreAccessError,
    StoreFullError,
    UsageError,
)

# Another attempt would meet the same wall.
_HOPELESS = (BundleError, DeterminismError, PlanError, StoreAccessError, StoreFullError, UsageError)


@dataclass
class _Attempt:
    task: Task
    number: int = 0


@dataclass
class _Member:
    """One actor and the tasks that it was given, oldest (the running one) first."""

    actor: Any
    given: dict[Any, _Attempt] = field(default_factory=dict)


class ShardPool:
    """Actors that make shards.

    Args:
        start_actor: starts one actor with a remote method ``make(task, attempt) -> Receipt``.
        num_actors: how many.
        depth: tasks given to an actor at a time; it carries out as many at once as it has threads for.
        max_attempts: how often one task is tried.
        on_event: told in one line of every failed attempt and every lost actor.
    """

    def __init__(
        self,
        start_actor: Callable[[], Any],
        num_actors: int,
        *,
        depth: int = 2,
        max_attempts: int = 3,
        on_event: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._start_actor = start_actor
        self._depth = depth
        self._max_attempts = max_attempts
        self._on_event = on_event
        self._again: deque[_Attempt] = deque()
        self._deaths_in_a_row = 0
        self._members = [_Member(start_actor()) for _ in range(num_actors)]

    def run(self, tasks: Iterator[Task]) -> Iterator[Receipt]:
        """Yield the receipt of every task.

        Raises:
            JobError: a task failed ``max_attempts`` times, or actors keep dying.
            GenworkerError: a failure that no other attempt can mend, as it was raised in the actor.
        """
        fresh = (_Attempt(task) for task in tasks)
        while True:
            self._fill(fresh)
            waiting = [ref for member in self._members for ref in member.given]
            if not waiting:
                return
            done, _ = ray.wait(waiting, num_returns=1)
            receipt = self._collect(done[0])
            if receipt is not None:
                yield receipt

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of one actor and return its answer, for what only the actors' machines know.

        Raises:
            JobError: the actor died; GenworkerError as it was raised there.
        """
        try:
            return ray.get(getattr(self._members[0].actor, method).remote(*args))
        except RayTaskError as err:
            raise (err.cause if isinstance(err.cause, GenworkerError) else err) from err
        except RayActorError as err:
            raise JobError(f"the first actor died before it did anything: {_reason(err)}") from err

    def close(self) -> None:
        """End all actors now; what they were making is made again by the next run."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    def _fill(self, fresh: Iterator[_Attempt]) -> None:
        # Breadth first: with few tasks left, no actor holds two while another holds none.
        for depth in range(self._depth):
            for member in self._members:
                if len(member.given) > depth:
                    continue
                attempt = self._again.popleft() if self._again else next(fresh, None)
                if attempt is None:
                    return
                member.given[member.actor.make.remote(attempt.task, attempt.number)] = attempt

    def _collect(self, ref: Any) -> Receipt | None:
        member = next(member for member in self._members if ref in member.given)
        try:
            receipt: Receipt = ray.get(ref)
        except RayTaskError as err:
            self._retry(member.given.pop(ref), err.cause if isinstance(err.cause, Exception) else err)
            return None
        except RayActorError as err:
            self._replace(member, err)
            return None
        except RayError as err:
            self._retry(member.given.pop(ref), err)
            return None
        self._deaths_in_a_row = 0
        del member.given[ref]
        return receipt

    def _retry(self, attempt: _Attempt, cause: Exception) -> None:
        if isinstance(cause, _HOPELESS):
            raise cause
        attempt.number += 1
        what = str(cause) if isinstance(cause, GenworkerError) else f"{type(cause).__name__}: {cause}"
        if attempt.number >= self._max_attempts:
            raise JobError(
                f"{attempt.task.key}: failed {attempt.number} times, the last time with: {what}; the dataset is not "
                "published, what was made stays: mend the cause and run the same command again"
            ) from cause
        self._on_event(f"{attempt.task.key}: attempt {attempt.number} of {self._max_attempts} failed: {what}")
        self._again.append(attempt)

    def _replace(self, member: _Member, err: RayActorError) -> None:
        self._deaths_in_a_row += 1
        limit = max(3, 2 * len(self._members))
        reason = _reason(err)
        if self._deaths_in_a_row > limit:
            raise JobError(
                f"{self._deaths_in_a_row} actors died without finishing a task in between, the last one: "
                f"{reason if err.actor_init_failed else err}; the dataset is not published, what was made stays: mend the "
                "cause (memory is the usual one) and run the command again"
            ) from err
        self._on_event(f"an actor died and is replaced: {reason}")
        given = list(member.given.values())
        member.given.clear()
        # Only the running task can have killed the actor; the queued ones keep their count, and all do if none ran.
        running = [] if err.actor_init_failed else [given.pop(0)]
        self._again.extendleft(reversed(given))
        for attempt in running:
            self._retry(attempt, JobError(f"the actor that made it died: {reason}"))
        member.actor = self._start_actor()


def _reason(err: RayActorError) -> str:
    """One line of Ray's many. Of an error in an actor's constructor Ray keeps the text alone, which ends with the error."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
    return lines[-1] if err.actor_init_failed else lines[0]
