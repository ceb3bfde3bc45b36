"""What the pool does when machines come, go and differ, on actors that live in this process."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
import ray

from genworker.bulk import pool as pools
from genworker.bulk.capacity import Losses, fixed
from genworker.bulk.plan import Task
from genworker.bulk.pool import ShardPool
from genworker.errors import JobError
from tests.fakes.actors import receipt_for
from tests.fakes.local_actors import LocalActor, LocalActors

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH = 2


@pytest.fixture(autouse=True)
def _ends_local_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "kill", LocalActor.die)


def tasks(count: int) -> Iterator[Task]:
    """Tasks of ten samples each."""
    return (Task(index, index * 10, 10, f"data/shard-{index}") for index in range(count))


def shards_of(pool: ShardPool, count: int) -> list[int]:
    """Which shards a run over so many tasks makes, in order."""
    return sorted(receipt.shard_index for receipt in pool.run(tasks(count), count))


def test_the_pool_ticks_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shards that take long, the pool calls again and again, so that a log can show that the job lives."""
    monkeypatch.setattr(pools, "_TICK_SECONDS", 0.01)
    under_way: Future[Any] = Future()
    ticks = 0

    def on_tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 20:
            under_way.set_result(receipt_for(next(tasks(1)), 0))

    actors = LocalActors(lambda *_: under_way)
    assert shards_of(ShardPool(actors.start, fixed(1), on_tick=on_tick), 1) == [0]
    assert ticks >= 20


@pytest.mark.parametrize("num_actors", [1, 2, 4, 5, 6, 8, 16, 100])
def test_a_node_takes_its_actors_along_and_the_job_goes_on(num_actors: int) -> None:
    """However many actors one node holds, their end at once is no crash loop: others are started and make the shards."""

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Any:
        if actor.number >= num_actors:
            return receipt_for(task, attempt)
        if sum(other.num_calls for other in actors.started) == num_actors * DEPTH:
            for other in actors.started:
                other.die()
        return Future()

    actors, events = LocalActors(answer), list[str]()
    pool = ShardPool(actors.start, fixed(num_actors), depth=DEPTH, on_event=events.append)
    assert shards_of(pool, 3 * num_actors) == list(range(3 * num_actors))
    assert sum("an actor died and is replaced" in event for event in events) == num_actors
    assert len(actors.started) == 2 * num_actors


def test_a_question_outlives_the_actor_that_was_asked() -> None:
    """An actor that dies before it is ready, or over the question, is replaced; whoever is left answers."""
    events: list[str] = []

    def answer(actor: LocalActor, method: str, *args: object) -> object:
        if actor.number < 2:
            actor.die()
        return method, *args

    actors = LocalActors(answer)
    pool = ShardPool(actors.start, fixed(1), max_attempts=3, on_event=events.append)
    assert pool.ask("calibrate", 7, num_tasks=5) == ("calibrate", 7)
    assert sum("an actor died and is replaced" in event for event in events) == 2

    stillborn = LocalActors(answer)

    def start() -> LocalActor:
        actor = stillborn.start()
        if actor.number < 3:
            actor.die()
        return actor

    assert ShardPool(start, fixed(1), max_attempts=3).ask("calibrate") == ("calibrate",)
    assert len(stillborn.started) == 4


def test_a_question_that_ends_every_actor_ends_the_job() -> None:
    """After max_attempts actors the job ends with the question and the last reason."""
    actors = LocalActors(lambda actor, *_: actor.die())
    with pytest.raises(
        JobError, match=r"^calibrate: 3 actors died over it, the last one: The actor .*; nothing was made"
    ):
        ShardPool(actors.start, fixed(4), max_attempts=3).ask("calibrate")


@pytest.mark.parametrize(("num_actors", "num_deaths"), [(1, 4), (2, 5), (4, 9), (100, 201)])
def test_a_crash_loop_ends_the_job(num_actors: int, num_deaths: int) -> None:
    """Actors that die whatever they make end the job once all of them were replaced twice."""

    def answer(actor: LocalActor, *_: object) -> Any:
        actor.die()

    actors = LocalActors(answer)
    pool = ShardPool(actors.start, fixed(num_actors), depth=DEPTH, max_attempts=1_000)
    with pytest.raises(JobError, match=f"^{num_deaths} actors died without finishing a task in between, the last one"):
        shards_of(pool, 3 * num_actors)


def test_losses_count_against_the_most_actors_since_a_task_was_finished() -> None:
    """A pool that shrinks by its losses may lose as many as a whole one; a task that is finished begins the count anew."""
    losses = Losses()
    assert not any(losses.note(left) for left in range(16, 0, -1))
    assert not any(losses.note(left) for left in range(16, 0, -1))
    assert losses.note(16)
    losses.forget()
    assert losses.in_a_row == 0
    assert [losses.note(1) for _ in range(4)] == [False, False, False, True]
