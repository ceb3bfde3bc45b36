"""The pool on real Ray actors: every task once, attempts counted, dead actors replaced, and never a hang."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import ray

from genworker.bulk.actor import Places
from genworker.bulk.capacity import Capacity, fixed
from genworker.bulk.plan import Task
from genworker.bulk.pool import Drained, ShardPool
from genworker.bulk.request import GenerateSpec
from genworker.bulk.speculation import Stragglers
from genworker.bulk.tally import Tally
from genworker.errors import DeterminismError, JobError, SourceError, StoreError
from tests.fakes import actors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.bulk.records import Receipt

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_TASKS = 24


def tasks(count: int = NUM_TASKS) -> Iterator[Task]:
    """Tasks of ten samples each."""
    return (Task(index, index * 10, 10, f"data/shard-{index}") for index in range(count))


def starter(actor: type, *args: object) -> Callable[[], Any]:
    """What the pool calls to start an actor; none takes a CPU, so that many start at once."""
    remote = ray.remote(actor).options(num_cpus=0, max_restarts=0, max_task_retries=0)
    return lambda: remote.remote(*args)


def run(pool: ShardPool, count: int = NUM_TASKS) -> list[Receipt]:
    """All receipts of a run, and the end of its actors."""
    try:
        return list(pool.run(tasks(count)))
    finally:
        pool.close()


def attempts(receipts: list[Receipt]) -> dict[int, int]:
    """The attempt that made each shard; fails when a shard came twice or not at all."""
    assert sorted(receipt.shard_index for receipt in receipts) == list(range(len(receipts)))
    return {receipt.shard_index: receipt.attempt for receipt in receipts}


@pytest.mark.parametrize(("num_actors", "depth"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_every_task_is_made_once(num_actors: int, depth: int) -> None:
    """Whatever the number of actors and the depth, and in whatever order shards end, each has one receipt."""
    receipts = run(ShardPool(starter(actors.Steady), fixed(num_actors), depth=depth))
    assert attempts(receipts) == dict.fromkeys(range(NUM_TASKS), 0)
    assert all(
        receipt == actors.receipt_for(task, 0) for task, receipt in zip(tasks(), in_order(receipts), strict=True)
    )


def in_order(receipts: list[Receipt]) -> list[Receipt]:
    """Receipts by shard index."""
    return sorted(receipts, key=lambda receipt: receipt.shard_index)


def test_no_tasks_are_no_receipts() -> None:
    """A job whose shards are all there ends at once."""
    assert run(ShardPool(starter(actors.Steady), fixed(2)), count=0) == []


def test_one_pool_runs_twice() -> None:
    """A pool that has worked through its tasks takes more."""
    pool = ShardPool(starter(actors.Steady), fixed(2))
    assert len(list(pool.run(tasks(5)))) == 5
    assert len(run(pool, 7)) == 7


@pytest.mark.parametrize(("num_actors", "depth"), [(1, 1), (2, 2), (3, 4)])
def test_the_window_is_bounded(num_actors: int, depth: int) -> None:
    """Never more than num_actors * depth tasks are drawn and unanswered, so a million shards cost no memory."""
    drawn = received = widest = 0

    def counted() -> Iterator[Task]:
        nonlocal drawn, widest
        for task in tasks():
            drawn += 1
            widest = max(widest, drawn - received)
            yield task

    pool = ShardPool(starter(actors.Steady), fixed(num_actors), depth=depth)
    for _ in pool.run(counted()):
        received += 1
    pool.close()
    assert received == NUM_TASKS
    # The first actor to be ready may have made all before the others are.
    assert depth <= widest <= num_actors * depth


def test_a_raising_task_is_tried_again() -> None:
    """A task that fails twice succeeds at the third attempt, the others at the first, and every failure is told.

    What the store refuses: an actor that fails three times in a row by itself is replaced, and what it had in hand begins anew.
    """
    events: list[str] = []
    start = starter(actors.Raising, 2, StoreError)
    receipts = run(ShardPool(start, fixed(2), max_attempts=3, on_event=events.append))
    assert attempts(receipts) == {index: 2 if index % 4 == 0 else 0 for index in range(NUM_TASKS)}
    assert len(events) == 2 * NUM_TASKS // 4
    assert "data/shard-0: attempt 1 of 3 failed: no luck at attempt 0" in events


def test_a_task_that_keeps_raising_ends_the_job() -> None:
    """After max_attempts the job ends with the task, the count and the last message."""
    with pytest.raises(JobError, match=r"data/shard-\d+: failed 2 times, .*ValueError: no luck at attempt 1"):
        run(ShardPool(starter(actors.Raising, 99), fixed(2), max_attempts=2))


def test_hopeless_errors_end_the_job_at_once() -> None:
    """An error that no attempt can mend keeps its type and message and is not tried again."""
    events: list[str] = []
    with pytest.raises(DeterminismError, match=r"^data/shard-3: other bytes at attempt 0$"):
        run(ShardPool(starter(actors.Hopeless), fixed(2), max_attempts=5, on_event=events.append))
    assert events == []


@pytest.mark.parametrize("depth", [1, 4])
def test_a_killed_actor_is_replaced(depth: int) -> None:
    """Tasks of killed actors are made by others; those that only waited in the actor's queue failed at nothing."""
    events: list[str] = []
    pool = ShardPool(starter(actors.Dying, (0, 9)), fixed(2), depth=depth, max_attempts=2, on_event=events.append)
    made = attempts(run(pool))
    assert {made[0], made[9]} == {1}
    assert sum(made.values()) <= 2 * depth  # what else the two had in hand
    assert sum("failed" in event for event in events) == 2
    assert sum("an actor died and is replaced" in event for event in events) == 2


def test_a_task_that_kills_every_actor_ends_the_job() -> None:
    """A task whose actors always die uses up its attempts and is named; the job does not go round for ever."""
    with pytest.raises(JobError, match=r"data/shard-5: failed 3 times, .*the actor that made it died"):
        run(ShardPool(starter(actors.Dying, (5,), 99), fixed(2), max_attempts=3))


@pytest.mark.slow
def test_actors_that_always_die_end_the_job() -> None:
    """Where every actor dies whatever it makes, the job ends long before so many attempts are used up."""
    with pytest.raises(JobError, match=r"actors died without finishing a task in between"):
        run(ShardPool(starter(actors.Dying, tuple(range(NUM_TASKS)), 99), fixed(2), max_attempts=1_000))


@pytest.mark.slow
def test_actors_that_die_when_they_start_end_the_job() -> None:
    """Actors whose process never gets as far as a task are not replaced for ever."""
    with pytest.raises(JobError, match=r"died"):
        run(ShardPool(starter(actors.DeadFromTheStart), fixed(1), max_attempts=1_000))


@pytest.mark.slow
def test_a_constructor_that_raises_ends_the_job_with_its_error() -> None:
    """Where no actor can be set up, the job ends with the reason; no task is blamed."""
    with pytest.raises(JobError, match=r"5 actors died .*SourceError: cannot be set up: nothing is here;"):
        run(ShardPool(starter(actors.BrokenFromTheStart), fixed(2), max_attempts=1))


def test_asking_an_actor() -> None:
    """`ask` gives an actor's answer, its error as it was raised, and a JobError when actors die whatever replaces them."""
    pool = ShardPool(starter(actors.Steady), fixed(1))
    assert pool.ask("echo", {"a": 1}) == {"a": 1}
    with pytest.raises(SourceError, match=r"^refused$"):
        pool.ask("refuse")
    pool.close()
    broken = ShardPool(starter(actors.BrokenFromTheStart), fixed(1))
    with pytest.raises(JobError, match=r"4 actors died .*SourceError: cannot be set up: nothing is here;"):
        broken.ask("echo", 1)
    broken.close()


def test_a_straggler_is_made_a_second_time() -> None:
    """When nothing else is left, an idle actor makes the slowest task too, and the job does not wait for the first attempt."""
    tally = Tally()
    pool = ShardPool(
        starter(actors.Straggling, {(5, 0): 60.0}),
        fixed(2),
        depth=1,
        tally=tally,
        stragglers=Stragglers(least_seconds=0.3),
    )
    started = time.monotonic()
    assert attempts(run(pool)) == {index: int(index == 5) for index in range(NUM_TASKS)}
    assert time.monotonic() - started < 40.0
    assert (tally["shards_speculative"], tally["shards_committed"]) == (1, NUM_TASKS)


def test_two_attempts_with_other_bytes_end_the_job() -> None:
    """A second attempt that gives other bytes is a violation of determinism, and both attempts are named."""
    slow = {(5, 0): 5.0, (6, 0): 60.0, (6, 1): 60.0}  # the last keeps the job open until both attempts at 5 are there
    pool = ShardPool(
        starter(actors.Straggling, slow, ((5, 1),)), fixed(3), depth=1, stragglers=Stragglers(least_seconds=0.3)
    )
    where = r"by the actor on \S+ pid \d+"
    with pytest.raises(DeterminismError, match=rf"^data/shard-5: .*attempt 0 {where}; attempt 1 {where}"):
        run(pool)


def test_a_pool_that_is_stopped_waits_for_what_is_running() -> None:
    """After `stop`, no task is begun, running ones end and give their receipts, and what is too slow is left."""
    pool = ShardPool(starter(actors.Straggling, {(0, 0): 60.0, (1, 0): 1.0}), fixed(3), depth=1, drain_seconds=4.0)
    drawn: list[int] = []
    receipts: list[int] = []
    stopped_at: list[float] = []

    def noted() -> Iterator[Task]:
        for task in tasks():
            drawn.append(task.shard_index)
            yield task

    def work() -> None:
        for receipt in pool.run(noted()):
            receipts.append(receipt.shard_index)
            if not stopped_at:
                stopped_at.append(time.monotonic())
                pool.stop()

    with pytest.raises(Drained):
        work()
    assert 3.5 < time.monotonic() - stopped_at[0] < 10.0
    pool.close()
    assert sorted(receipts) == sorted(set(drawn) - {0})
    assert len(drawn) <= 3


def test_the_pool_grows_with_the_cluster() -> None:
    """Room that appears while a job runs is used; no more actors are started than there are tasks left."""
    begun: list[float] = []
    start = starter(actors.Steady)

    def counted() -> Any:
        begun.append(time.monotonic())
        return start()

    rooms = iter([1, 1])
    capacity = Capacity(1, None, lambda: next(rooms, 3), wait_seconds=60)
    pool = ShardPool(counted, capacity, depth=1, poll_seconds=0.05)
    receipts = []
    for receipt in pool.run(tasks(200), 200):
        receipts.append(receipt)
        time.sleep(0.01)
    pool.close()
    assert attempts(receipts) == dict.fromkeys(range(200), 0)
    assert len(begun) == 3


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (1 / 3, 3), (1.0, 1)])
def test_actors_share_a_gpu(share: float, expected: int) -> None:
    """As many actors are placed on a GPU as their shares fill, and all are given it; one more waits for a place."""
    values = {"bundle": "b", "out": "o", "num_samples": 1, "use_gpu": True, "gpus_per_actor": share}
    places = Places(GenerateSpec.parse(values, origin="test"))
    assert places.room() == expected
    started: list[Any] = []

    def start() -> Any:
        started.append(ray.remote(actors.Steady).options(**places.options()).remote())
        return started[-1]

    pool = ShardPool(start, Capacity(1, None, places.room, wait_seconds=60.0))
    try:
        assert len(list(pool.run(tasks()))) == NUM_TASKS
        assert ray.get([actor.gpus.remote() for actor in started]) == [[0]] * expected
        ready, _ = ray.wait([start().gpus.remote()], timeout=1.0)
        assert ready == []
    finally:
        pool.close()
        for actor in started:
            ray.kill(actor)
