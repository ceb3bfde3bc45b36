"""A pool of Ray actors that works through tasks with a bounded window, and outlives the actors in it.

In: a way to start an actor, how many there may be, tasks. Out: receipts, in order of completion. Ray's own ActorPool neither
retries nor replaces a dead actor, and its automatic retries hide attempts; so attempts are counted here. No image passes
through this module.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from genworker.bulk.attempts import Attempt, Attempts
from genworker.bulk.capacity import Capacity, Patience
from genworker.bulk.losses import Losses, reason_of
from genworker.bulk.members import Member, Members
from genworker.bulk.plan import Task
from genworker.bulk.records import Receipt
from genworker.bulk.speculation import Stragglers
from genworker.bulk.tally import Tally
from genworker.errors import (
    ClusterError,
    DeviceError,
    GenworkerError,
    JobError,
    OtherMachineError,
    StoreError,
)

_TICK_SECONDS = 0.5
# An actor that failed so often in a row, at whatever it was given, is likelier to be the cause than its tasks are.
_MOST_FAILURES = 3


class Drained(KeyboardInterrupt):
    """The pool was told to stop, and what ran then has ended or used up its time."""


class ShardPool:
    """Actors that make shards.

    Args:
        start_actor: starts one actor with a remote method ``make(task, attempt) -> Receipt``.
        capacity: how many there may be; the cluster is asked again every ``poll_seconds``.
        depth: tasks given to an actor at a time; it carries out as many at once as it has threads for.
        max_attempts: how often one task may fail, and how many actors a question may end.
        on_event: told in one line of every failed attempt, every lost actor and every shortage.
        on_tick: called twice a second at least, also while nothing happens.
        on_refused: given the id of a node whose actors must not make shards of this plan, or break again and again, so that no
            more are started there.
        tally: counts attempts, actors and what they did.
        stragglers: says from when on a task is given to a second, idle actor.
        drain_seconds: how long `stop` leaves for what is running.
        poll_seconds: see ``capacity``.
    """

    def __init__(
        self,
        start_actor: Callable[[], Any],
        capacity: Capacity,
        *,
        depth: int = 2,
        max_attempts: int = 3,
        on_event: Callable[[str], None] = lambda _text: None,
        on_tick: Callable[[], None] = lambda: None,
        on_refused: Callable[[str], None] = lambda _node: None,
        tally: Tally | None = None,
        stragglers: Stragglers | None = None,
        drain_seconds: float = 20.0,
        poll_seconds: float = 5.0,
    ) -> None:
        self._start_actor, self._capacity, self._depth = start_actor, capacity, depth
        self._max_attempts = max_attempts
        self._on_event, self._on_tick, self._tally = on_event, on_tick, tally or Tally()
        self._attempts = Attempts(max_attempts, on_event, self._tally, stragglers or Stragglers())
        self._patience = Patience(capacity, on_event)
        self._drain_seconds, self._poll_seconds = drain_seconds, poll_seconds
        self._polled_at = float("-inf")
        self._looked_at = time.monotonic()
        self._members = Members(depth)
        self._news: queue.SimpleQueue[tuple[Member, Attempt | None, Future[Any]] | None] = queue.SimpleQueue()
        self._losses = Losses(on_event, on_refused)
        self._stopping = False
        self._tasks_left: int | None = None

    def run(self, tasks: Iterator[Task], num_tasks: int | None = None) -> Iterator[Receipt]:
        """Yield the receipt of every task; ``num_tasks``, where it is known, keeps idle actors from being started and held.

        Without tasks it ends at once, on a cluster without room too.

        Raises:
            JobError: a task failed ``max_attempts`` times, or actors keep dying.
            ClusterError: the cluster had room for too few actors for too long.
            OtherMachineError: so it was because all machines there are of another kind than the plan's.
            GenworkerError: a failure that no other attempt can mend, as it was raised in the actor.
            Drained: `stop` was called.
        """
        self._tasks_left = num_tasks
        self._attempts.begin(tasks)
        if self._attempts.all_done():  # and no actor, nor room for one, is needed
            return
        self._capacity.check(num_tasks)
        while not self._stopping:
            self._scale()
            self._fill()
            yield from self._receive()
            if self._attempts.all_done():
                self._tally.show("queue_depth", self._attempts.num_running)
                return
        yield from self._drain()
        raise Drained

    def stop(self) -> None:
        """Give out no more tasks, and end `run` once what is running has ended. For signal handlers."""
        self._stopping = True
        self._news.put(None)

    def ask(self, method: str, *args: Any, num_tasks: int | None = None) -> Any:
        """Call a method of one actor and return its answer, for what only the actors' machines know.

        All actors that ``num_tasks`` can use are started meanwhile, so that they are ready when `run` begins. Where the actor
        dies, another one is asked, ``max_attempts`` of them at most.

        Raises:
            JobError: all that were asked died, or actors keep dying; ClusterError: there is no room for as many as there must
                be; OtherMachineError: on no machine; GenworkerError as it was raised there.
        """
        self._tasks_left = num_tasks
        self._capacity.check(num_tasks)
        deaths = 0
        while True:
            while (member := self._members.any_ready()) is None:
                self._wait_without_tasks()
            try:
                return self._answer(member, method, args)
            except RayTaskError as err:
                if isinstance(err.cause, OtherMachineError):  # another machine may be of use
                    self._do_without(member, err.cause)
                    continue
                if isinstance(err.cause, DeviceError) and deaths + 1 < self._max_attempts:
                    deaths += 1
                    self._replace(member, err.cause)
                    continue
                if isinstance(err.cause, GenworkerError):
                    raise err.cause from err
                what = f"{type(err.cause).__name__}: {err.cause}"
                raise JobError(f"{method}: failed in the actor on {member.where}: {what}; nothing was made") from err
            except RayActorError as err:
                deaths += 1
                if deaths == self._max_attempts:
                    raise JobError(
                        f"{method}: {deaths} actors died over it, the last one: {reason_of(err)}; nothing was made: mend the "
                        "cause (memory is the usual one) and run the command again"
                    ) from err
                if not member.gone:
                    self._lose(member, err)

    def close(self) -> None:
        """End all actors now; what they were making is made again by the next run."""
        for member in self._members:
            self._dismiss(member)

    def _answer(self, member: Member, method: str, args: tuple[Any, ...]) -> Any:
        answer = getattr(member.actor, method).remote(*args).future()
        answer.add_done_callback(lambda _answer: self._news.put(None))
        while not answer.done():
            self._wait_without_tasks()
        return answer.result()

    def _wait_without_tasks(self) -> None:
        self._scale()
        for _ in self._receive():
            raise AssertionError("a receipt without a task")

    # --- actors ------------------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Look at the cluster now and then; have as many actors as it holds and the tasks can use."""
        now = time.monotonic()
        self._tally.ready(self._members.num_ready, now - self._looked_at)
        self._looked_at = now
        try:
            self._patience.look(self._members.num_ready, self._tasks_left, now)
        except ClusterError as err:
            raise self._losses.reason_for(err, self._capacity.room()) from err
        if now - self._polled_at < self._poll_seconds and self._members:
            return
        self._polled_at = now
        wanted = self._capacity.wanted(self._tasks_left)
        for _ in range(wanted - len(self._members)):
            self._start()
        # Those that wait for a place, and idle ones, so that an autoscaler can take their nodes; whoever works goes on.
        dispensable = self._members.waiting() + self._members.spare(self._tasks_left)
        for member in dispensable[: max(0, len(self._members) - wanted)]:
            self._dismiss(member)

    def _start(self) -> None:
        member = self._members.add(self._start_actor())
        self._listen(member, None, member.actor.__ray_call__.remote(_where))

    def _listen(self, member: Member, attempt: Attempt | None, ref: Any) -> None:
        # Called back when the result is there, so that waiting costs nothing per task in flight.
        ref.future().add_done_callback(lambda future: self._news.put((member, attempt, future)))

    def _dismiss(self, member: Member) -> None:
        self._members.remove(member)
        ray.kill(member.actor)

    def _let_go(self, member: Member) -> int:
        """End an actor in whose place another is wanted soon; returns how many there were with it."""
        num_members = len(self._members)
        self._dismiss(member)
        self._polled_at = float("-inf")
        return num_members

    def _lose(self, member: Member, err: RayActorError) -> None:
        num_members = self._let_go(member)
        self._tally.count("actors_lost")
        self._losses.died(err, num_members)
        # The oldest task is the likeliest to have killed the actor; the others keep their count.
        given = list(member.given)
        self._attempts.put_back(given[1:], begun=True)
        if given:
            self._attempts.failed(given[0], JobError(f"the actor that made it died: {reason_of(err)}"))

    def _replace(self, member: Member, cause: Exception) -> None:
        """Let an actor go that lives but gets nothing done; its other tasks keep their count."""
        num_members = self._let_go(member)
        self._tally.count("actors_lost")
        self._losses.broke(cause, member, num_members)
        self._attempts.put_back(member.given, begun=True)

    def _do_without(self, member: Member, err: OtherMachineError) -> None:
        """Let an actor go whose machine may not make shards of this plan; its tasks keep their count."""
        self._losses.refused(err, member, self._let_go(member))
        self._attempts.put_back(member.given, begun=False)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        # Breadth first: with few tasks left, no actor holds two while another holds none.
        alone = self._members.num_ready == 1
        for load in range(self._depth):
            passed_over: set[Member] = set()
            while (member := self._members.holding(load, passed_over)) is not None:
                attempt = self._attempts.next(idle=load == 0, where=member.where or "", alone=alone)
                if attempt is None:
                    if not self._attempts.some_wait:
                        break
                    passed_over.add(member)  # what waits failed there; others may take it
                    continue
                self._members.give(member, attempt)
                self._listen(member, attempt, member.actor.make.remote(attempt.task, attempt.number))
        self._tally.show("queue_depth", self._attempts.num_running)

    def _receive(self) -> Iterator[Receipt]:
        """Wait a little for news and deal with all that there are."""
        self._on_tick()
        try:
            news = self._news.get(timeout=_TICK_SECONDS)
            while True:
                receipt = None if news is None or news[0].gone else self._hear(*news)
                if receipt is not None:
                    yield receipt
                news = self._news.get_nowait()
        except queue.Empty:
            return

    def _hear(self, member: Member, attempt: Attempt | None, future: Future[Any]) -> Receipt | None:
        err = future.exception()
        if isinstance(err, RayActorError) and not isinstance(err, RayTaskError):
            self._lose(member, err)
            return None
        if attempt is None:
            if err is not None:
                raise JobError(f"an actor cannot be used: {err}") from err
            self._members.ready(member, *future.result())
            return None
        cause = err.cause if isinstance(err, RayTaskError) and isinstance(err.cause, Exception) else err
        if isinstance(cause, OtherMachineError):
            self._do_without(member, cause)
            return None
        self._members.answered(member, attempt)
        if cause is not None:
            cause = cause if isinstance(cause, Exception) else RayError(str(cause))
            self._attempts.failed(attempt, cause)
            member.failures += not isinstance(cause, StoreError)  # which is the store's fault
            if isinstance(cause, DeviceError) or member.failures >= _MOST_FAILURES:
                self._replace(member, cause)
            return None
        member.failures = 0
        self._losses.task_finished(member)
        receipt = self._attempts.succeeded(attempt, future.result())
        if receipt is not None and self._tasks_left is not None:
            self._tasks_left -= 1
        return receipt

    def _drain(self) -> Iterator[Receipt]:
        deadline = time.monotonic() + self._drain_seconds
        self._attempts.forget_waiting()
        self._on_event(
            f"stopping: no new shards, up to {self._drain_seconds:.0f} s for the {self._attempts.num_running} that are running"
        )
        while self._attempts.num_running and self._members and time.monotonic() < deadline:
            yield from self._receive()


def _where(_actor: Any) -> tuple[str, str]:
    """Runs in an actor, once it is ready."""
    return f"{ray.util.get_node_ip_address()} pid {os.getpid()}", ray.get_runtime_context().get_node_id()
