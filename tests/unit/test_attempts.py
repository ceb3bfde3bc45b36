"""Which task is given out next, what counts as slow, and which of two attempts counts: the pool's rules without Ray."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from genworker.bulk import attempts as module
from genworker.bulk.attempts import Attempt, Attempts
from genworker.bulk.capacity import START_SECONDS, Capacity, Patience, fixed
from genworker.bulk.plan import Task
from genworker.bulk.progress import Event, Progress
from genworker.bulk.request import GenerateSpec
from genworker.bulk.speculation import Stragglers
from genworker.bulk.stages import StageSeconds
from genworker.bulk.summary import estimate, summarise
from genworker.bulk.tally import Tally
from genworker.errors import ClusterError, DeterminismError, JobError, StoreError, UsageError
from tests.fakes.actors import receipt_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.bulk.records import Receipt


class AlwaysSlow(Stragglers):
    """Calls every running attempt a straggler."""

    @property
    def limit(self) -> float | None:
        return -1.0


def attempts_at(
    count: int, stragglers: Stragglers | None = None, max_attempts: int = 3
) -> tuple[Attempts, Tally, list[str]]:
    """Attempts at so many tasks, what they count, and what they tell."""
    events: list[str] = []
    tally = Tally()
    attempts = Attempts(max_attempts, events.append, tally, stragglers or Stragglers())
    attempts.begin(Task(index, index * 10, 10, f"data/shard-{index}") for index in range(count))
    return attempts, tally, events


def take(attempts: Attempts, where: str = "a", *, idle: bool = True) -> Attempt:
    """The next attempt, which must be there."""
    attempt = attempts.next(idle=idle)
    assert attempt is not None
    attempt.where = where
    return attempt


def receipt_of(attempt: Attempt, **changes: object) -> Receipt:
    return receipt_for(attempt.task, attempt.number).model_copy(update=changes)


def two_attempts() -> tuple[Attempts, Tally, Attempt, Attempt]:
    """One task, given out twice, because the first attempt is slow."""
    attempts, tally, _ = attempts_at(1, AlwaysSlow())
    return attempts, tally, take(attempts, "10.0.0.1 pid 7"), take(attempts, "10.0.0.2 pid 8")


def test_the_first_of_two_receipts_counts() -> None:
    """Whichever attempt is first gives the receipt; the other, with equal bytes, is a duplicate and no more."""
    for first, second in ((0, 1), (1, 0)):
        attempts, tally, *both = two_attempts()
        assert [attempt.number for attempt in both] == [0, 1]
        receipt = receipt_of(both[first])
        assert attempts.succeeded(both[first], receipt) == receipt
        assert attempts.all_done()
        assert attempts.succeeded(both[second], receipt_of(both[second], duplicate=True)) is None
        assert (tally["shards_committed"], tally["shards_duplicate"], tally["shards_speculative"]) == (1, 1, 1)
        assert attempts.num_running == 0


def test_two_receipts_that_differ_name_both_attempts() -> None:
    """Different bytes for one task are a violation of determinism, told with digests, actors and attempt numbers."""
    attempts, _, one, other = two_attempts()
    attempts.succeeded(one, receipt_of(one))
    with pytest.raises(DeterminismError) as caught:
        attempts.succeeded(other, receipt_of(other, sha256="f" * 64))
    message = str(caught.value)
    assert "data/shard-0: two attempts gave different bytes" in message
    assert "f" * 64 in message
    assert receipt_of(one).sha256 in message
    assert "attempt 0 by the actor on 10.0.0.1 pid 7; attempt 1 by the actor on 10.0.0.2 pid 8" in message


def test_a_violation_that_the_store_shows_names_both_attempts() -> None:
    """An actor that found other bytes under its key does not know whose they are; the pool does."""
    attempts, _, one, other = two_attempts()
    attempts.succeeded(one, receipt_of(one))
    with pytest.raises(DeterminismError, match=r"holds others.*on 10\.0\.0\.1 pid 7.*on 10\.0\.0\.2 pid 8"):
        attempts.failed(other, DeterminismError("holds others"))


def test_a_failed_copy_is_not_the_tasks_failure() -> None:
    """While one attempt runs, the failure of another is told and counted, and neither ends the job nor adds a third."""
    attempts, tally, one, other = two_attempts()
    attempts.failed(other, StoreError("lost"))
    assert attempts.num_running == 1
    assert tally["shards_failed"] == 1
    assert attempts.next(idle=False) is None
    assert attempts.succeeded(one, receipt_of(one)) is not None
    assert attempts.all_done()


def test_a_task_fails_when_its_last_attempt_did() -> None:
    """A task is given up once it failed so often and nothing runs any more."""
    attempts, _, events = attempts_at(1, max_attempts=2)
    attempts.failed(take(attempts), StoreError("lost"))
    again = take(attempts)
    assert again.number == 1
    with pytest.raises(JobError, match=r"data/shard-0: failed 2 times, the last time with: lost again"):
        attempts.failed(again, StoreError("lost again"))
    assert events == ["data/shard-0: attempt 1 of 2 failed: lost"]


@pytest.mark.parametrize("error", [UsageError("wrong"), DeterminismError("differs")])
def test_what_no_attempt_can_mend_is_raised_as_it_is(error: Exception) -> None:
    """Hopeless errors are not tried again."""
    attempts, *_ = attempts_at(1)
    with pytest.raises(type(error), match=f"^{error}$"):
        attempts.failed(take(attempts), error)


@pytest.mark.parametrize("begun", [False, True])
def test_tasks_that_waited_in_a_lost_actor_lose_no_attempt(begun: bool) -> None:
    """What is put back comes first, in order, and failed at nothing; only what cannot have begun keeps its number."""
    attempts, *_ = attempts_at(4, max_attempts=1)
    given = [take(attempts) for _ in range(3)]
    attempts.put_back(given[1:], begun=begun)
    again = [take(attempts) for _ in range(3)]
    assert [(attempt.task.shard_index, attempt.number) for attempt in again] == [(1, begun), (2, begun), (3, 0)]
    assert attempts.num_running == 4


def test_what_a_lost_actor_may_have_stored_is_named() -> None:
    """A dead actor may have stored its shard; where the next attempt finds other bytes there, both are told."""
    attempts, *_ = attempts_at(1)
    attempts.put_back([take(attempts, "10.0.0.1 pid 7")], begun=True)
    with pytest.raises(
        DeterminismError, match=r"attempt 0 by the actor on 10\.0\.0\.1 pid 7; attempt 1 by .* 10\.0\.0\.2 pid 8"
    ):
        attempts.failed(take(attempts, "10.0.0.2 pid 8"), DeterminismError("holds others"))


def test_a_task_does_not_go_back_to_the_actor_that_failed_at_it() -> None:
    """Unless there is no other; whoever failed gets a fresh task instead."""
    attempts, *_ = attempts_at(2)
    attempts.failed(take(attempts, "a"), ValueError("no"))
    fresh = attempts.next(idle=True, where="a", alone=False)
    assert fresh is not None
    assert fresh.task.shard_index == 1
    assert attempts.next(idle=True, where="a", alone=False) is None
    assert attempts.some_wait
    again = attempts.next(idle=True, where="b", alone=False)
    assert again is not None
    assert (again.task.shard_index, again.number) == (0, 1)
    again.where = "b"
    attempts.failed(again, ValueError("no"))
    alone = attempts.next(idle=True, where="b", alone=True)
    assert alone is not None
    assert alone.task.shard_index == 0


def test_a_task_goes_back_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other actors may be stuck; and what a store refuses is no actor's fault, so it goes back at once."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    attempts, *_ = attempts_at(1, max_attempts=9)
    attempts.failed(take(attempts, "a"), ValueError("no"))
    assert attempts.next(idle=True, where="a", alone=False) is None
    now[0] += 21.0
    again = attempts.next(idle=True, where="a", alone=False)
    assert again is not None
    again.where = "a"
    attempts.failed(again, StoreError("503"))
    now[0] += 21.0
    late = attempts.next(idle=True, where="a", alone=False)
    assert late is not None
    late.where = "a"
    attempts.failed(late, StoreError("503"))
    assert attempts.next(idle=True, where="a", alone=False) is not None


def test_only_idle_actors_get_a_second_attempt_and_each_task_one() -> None:
    """Busy actors wait for the tail; a task never has more than two attempts at a time."""
    attempts, *_ = attempts_at(1, AlwaysSlow())
    take(attempts)
    assert attempts.next(idle=False) is None
    take(attempts)
    assert attempts.next(idle=True) is None


def test_the_slowest_is_tried_first_and_only_beyond_the_limit() -> None:
    """An attempt is slow beyond a multiple of the median, never below the floor, and not before some have finished."""
    stragglers = Stragglers(factor=3.0, least_seconds=0.0)
    attempts, *_ = attempts_at(2, stragglers)
    first, _ = take(attempts), take(attempts)
    assert stragglers.limit is None
    for seconds in (1.0, 2.0, 9.0):
        stragglers.finished(seconds)
    assert stragglers.limit == 6.0
    assert attempts.next(idle=True) is None
    first.given_at -= 7.0
    assert take(attempts).task == first.task
    assert Stragglers(factor=3.0, least_seconds=10.0).limit is None
    floor = Stragglers(factor=3.0, least_seconds=10.0)
    for _ in range(3):
        floor.finished(0.1)
    assert floor.limit == 10.0


# --- how many actors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fewest", "most", "room", "tasks_left", "expected"),
    [
        (1, None, 5, None, 5),  # what the cluster holds
        (1, None, 5, 3, 3),  # never more than tasks
        (1, None, 0, 3, 1),  # one that waits for room, which an autoscaler sees
        (2, 8, 3, 100, 8),  # all that are allowed, for the same reason
        (2, 8, 3, 0, 1),
        (4, 4, 100, 100, 4),
    ],
)
def test_how_many_actors_are_wanted(
    fewest: int, most: int | None, room: int, tasks_left: int | None, expected: int
) -> None:
    """The number of actors follows the limits, the cluster and the tasks."""
    assert Capacity(fewest, most, lambda: room).wanted(tasks_left) == expected


def test_a_cluster_that_cannot_grow_is_not_waited_for() -> None:
    """Without time to wait, too little room is an error at once."""
    Capacity(2, 2, lambda: 2).check()
    Capacity(2, 2, lambda: 1, wait_seconds=1).check()
    with pytest.raises(ClusterError, match=r"2 actors were asked for, each needs much, enough for 1: lower --actors"):
        Capacity(2, 2, lambda: 1, lambda: "each needs much").check()


def waiting(capacity: Capacity, ready: Callable[[float], int], seconds: int) -> list[str]:
    """What a user is told in so many seconds."""
    events: list[str] = []
    patience = Patience(capacity, events.append)
    for now in range(seconds + 1):
        patience.look(ready(now), None, float(now))
    return events


def test_a_shortage_is_told_again_and_again_until_it_ends() -> None:
    """Every quarter of a minute one line says what is missing and how long it is waited for; nothing once it is there."""
    capacity = Capacity(2, 8, lambda: 1, lambda: "each needs 1 GPU; the cluster has 1", wait_seconds=100)
    events = waiting(capacity, lambda now: 1 if now < 50 else 2, 90)
    assert len(events) == 3
    assert events[0] == (
        "waiting for the cluster: 1 of at least 2 actors are ready, each needs 1 GPU; the cluster has 1, enough for 1; "
        "gives up in 85 s"
    )


def test_a_shortage_ends_the_job_after_the_timeout() -> None:
    """After the timeout the job ends with what was missing and the next step."""
    with pytest.raises(ClusterError, match=r"0 of at least 1 actors .*; waited 40 s: add nodes, .*--wait-timeout"):
        waiting(Capacity(1, None, lambda: 0, wait_seconds=40), lambda _now: 0, 41)


def test_actors_with_a_place_have_time_to_start() -> None:
    """Where there is room, a short timeout does not end actors that are only starting; one that never starts does."""
    capacity = Capacity(1, 1, lambda: 1, wait_seconds=5)
    assert waiting(capacity, lambda now: 0 if now < 60 else 1, 100)
    with pytest.raises(ClusterError, match=f"waited {START_SECONDS:.0f} s"):
        waiting(fixed(1), lambda _now: 0, int(START_SECONDS) + 1)


# --- what a run says of itself ---------------------------------------------------------------------------------------


def test_a_summary_adds_up() -> None:
    """Rates, shares and costs follow from counts; the price is of the GPUs or CPUs that actors have."""
    tally = Tally()
    for index in range(4):
        stages = StageSeconds(forward=2.0, put=1.0)
        receipt = receipt_for(Task(index, 0, 250, f"data/{index}"), 0).model_copy(update={"stages": stages})
        tally.attempt(receipt)
        tally.committed(receipt)
    tally.ready(2, 1_800.0)
    progress = Progress(8, 6, 1_500, 99, 1_000, 20.0, plan_id="p", num_samples=2_000)
    values = {"bundle": "b", "out": "o", "num_samples": 2_000, "use_gpu": True, "gpus_per_actor": 0.5}
    spec = GenerateSpec.parse({**values, "price_per_hour": 4.0}, origin="test")
    told = summarise(spec, progress, tally, estimate(spec, progress, 2))
    assert (told["made"]["samples"], told["made"]["shards"], told["made"]["samples_per_second"]) == (1_000, 4, 50.0)
    assert (told["stages"]["forward"], told["stages"]["put"], told["stages"]["encode"]) == (8.0, 4.0, 0.0)
    assert told["utilisation"]["forward"] == round(8 / 3_600, 4)
    assert told["cost"] == {
        "price_per_hour": 4.0,
        "total": 2.0,
        "per_million_samples": 2_000.0,
    }  # one hour of half a GPU
    # 20 s so far and 500 samples at 50 a second: 30 s of two actors
    assert told["estimate"] == {"after_shards": 6, "seconds": 30.0, "samples_per_second": 50.0, "cost": 0.033333}
    assert told["forecast"] is None
    free = summarise(GenerateSpec.parse(values, origin="test"), progress, tally, None)
    assert free["cost"] == {"price_per_hour": None, "total": None, "per_million_samples": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": [3, 2]}, "actors 3:2: write min:max"),
        ({"gpus_per_actor": 1.5}, "gpus_per_actor 1.5: an actor computes on one GPU"),
    ],
)
def test_what_cannot_be_placed_is_refused(changes: dict[str, object], message: str) -> None:
    """Ranges run upwards, and an actor uses no second GPU."""
    with pytest.raises(UsageError, match=message):
        GenerateSpec.parse({"bundle": "b", "out": "o", "num_samples": 1, **changes}, origin="test")


def test_giving_out_costs_the_same_with_many_tasks() -> None:
    """Tasks are drawn when they are given out, so a million cost nothing before that."""
    attempts, *_ = attempts_at(1_000_000)
    started = time.process_time()
    for _ in range(1_000):
        attempt = take(attempts)
        attempts.succeeded(attempt, receipt_of(attempt))
    assert time.process_time() - started < 1.0


def test_what_is_told_of_an_attempt_names_it() -> None:
    """A failure and a suspicion are told with the shard and the number of the attempt."""
    attempts, _, events = attempts_at(1, AlwaysSlow())
    take(attempts)
    second = take(attempts, "b")
    attempts.failed(second, StoreError("no"))
    assert [(event.shard, event.attempt) for event in events if isinstance(event, Event)] == [
        ("data/shard-0", 0),
        ("data/shard-0", 1),
    ]
