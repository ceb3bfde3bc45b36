"""What the pool does when machines come, go and differ, on actors that live in this process."""

from __future__ import annotations

import itertools
import signal
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from genworker.bulk import attempts as attempts_module
from genworker.bulk import pool as pools
from genworker.bulk.actor import Places
from genworker.bulk.attempts import Attempts
from genworker.bulk.capacity import Capacity, fixed
from genworker.bulk.job import _draining
from genworker.bulk.losses import Losses
from genworker.bulk.members import Member, Members
from genworker.bulk.plan import Task
from genworker.bulk.pool import Drained, ShardPool
from genworker.bulk.request import GenerateSpec
from genworker.bulk.speculation import Stragglers
from genworker.bulk.tally import Tally
from genworker.errors import (
    ClusterError,
    DeterminismError,
    DeviceError,
    JobError,
    OtherMachineError,
    StoreError,
)
from tests.fakes.actors import receipt_for
from tests.fakes.local_actors import LocalActor, LocalActors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genworker.bulk.records import Receipt

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
    losses = Losses(lambda _event: None, lambda _node: None)
    for num_members in [*range(16, 0, -1)] * 2:
        losses.died(RayActorError(), num_members)
    with pytest.raises(JobError, match=r"^33 actors died"):
        losses.died(RayActorError(), 16)
    losses.task_finished(Member(object()))
    for _ in range(3):
        losses.died(RayActorError(), 1)
    with pytest.raises(JobError, match=r"^4 actors died"):
        losses.died(RayActorError(), 1)


# --- fewer tasks than actors -----------------------------------------------------------------------------------------


class Stopwatch(Stragglers):
    """Calls every running attempt a straggler once the test says so."""

    is_up = False

    @property
    def limit(self) -> float | None:
        return -1.0 if self.is_up else None


def test_idle_actors_are_let_go_at_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole nodes go first; as many idle actors stay as tasks are left, and make those that take long."""
    monkeypatch.setattr(pools, "_TICK_SECONDS", 0.01)
    stragglers, ticks = Stopwatch(), itertools.count()
    let_go: list[int] = []

    def answer(_actor: LocalActor, _method: str, task: Task, attempt: int) -> Any:
        return Future() if task.shard_index < 2 and attempt == 0 else receipt_for(task, attempt)

    def on_tick() -> None:
        if next(ticks) == 40:  # all but two tasks were done long ago
            let_go.extend(actor.number for actor in actors.started if actor.is_dead)
            stragglers.is_up = True

    actors = LocalActors(answer, lambda number: f"node {number % 4}")
    pool = ShardPool(actors.start, fixed(8), depth=1, on_tick=on_tick, stragglers=stragglers, poll_seconds=0.0)
    receipts = list(pool.run(tasks(30), 30))
    assert {receipt.shard_index for receipt in receipts if receipt.attempt == 1} == {0, 1}
    assert len(receipts) == 30
    assert let_go == [2, 3, 6, 7]
    assert len(actors.started) == 8


def test_who_can_be_spared() -> None:
    """Nobody while it is not known what is left, nobody who holds a task, and never so many that a task has nobody."""
    members = Members(depth=2)
    attempts = Attempts(1, lambda _event: None, Tally(), Stragglers())
    attempts.begin(tasks(1))
    for number in range(6):
        members.ready(members.add(object()), f"pid {number}", f"node {number // 2}")
    attempt = attempts.next(idle=True)
    busy = members.any_ready()
    assert attempt is not None
    assert busy is not None
    members.give(busy, attempt)
    assert members.spare(None) == []
    assert members.spare(5) == []
    assert [member.where for member in members.spare(1)] == ["pid 2", "pid 3", "pid 4", "pid 5"]
    assert [member.where for member in members.spare(0)] == ["pid 2", "pid 3", "pid 4", "pid 5", "pid 1"]


# --- actors that live and get nothing done ---------------------------------------------------------------------------

BROKEN = DeviceError("the GPU failed: CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("err", [BROKEN, ValueError("what is broken here nobody knows")])
def test_an_actor_that_fails_at_everything_is_replaced(err: Exception) -> None:
    """It answers at once, so it would take, and fail at, all tasks while the others work; none of them is failed for that."""
    slow: list[tuple[Future[Any], Receipt]] = []

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Any:
        if actor.number == 0 and actor.num_calls > 2:
            raise err
        if actor.number == 1:
            slow.append((Future(), receipt_for(task, attempt)))
            return slow[-1][0]
        return receipt_for(task, attempt)

    def on_tick() -> None:
        while slow:
            future, receipt = slow.pop()
            future.set_result(receipt)

    actors, events, tally = LocalActors(answer, lambda number: f"node {number % 2}"), list[str](), Tally()
    pool = ShardPool(actors.start, fixed(2), max_attempts=2, on_event=events.append, on_tick=on_tick, tally=tally)
    assert shards_of(pool, 40) == list(range(40))
    assert tally["actors_lost"] == 1
    assert [event for event in events if "is replaced" in event] == [f"the actor on node 0 pid 0 is replaced: {err}"]
    assert len(actors.started) == 3


def test_an_actor_is_not_blamed_for_the_store() -> None:
    """Where the store fails, all actors meet that; another process would meet it too."""

    def answer(_actor: LocalActor, _method: str, task: Task, attempt: int) -> Receipt:
        if attempt < 4:
            raise StoreError("503")
        return receipt_for(task, attempt)

    actors = LocalActors(answer)
    assert shards_of(ShardPool(actors.start, fixed(1), max_attempts=5), 6) == list(range(6))
    assert len(actors.started) == 1


def test_a_node_whose_actors_break_again_and_again_is_left_out() -> None:
    """A GPU that stays broken breaks each process that comes to it; after three the job goes on without its node."""
    left_out: set[str] = set()

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Receipt:
        if actor.node == "odd":
            raise BROKEN
        return receipt_for(task, attempt)

    actors = LocalActors(answer, lambda number: "good" if number == 0 or "odd" in left_out else "odd")
    events: list[str] = []
    pool = ShardPool(actors.start, fixed(2), depth=1, on_event=events.append, on_refused=left_out.add, poll_seconds=0.0)
    assert shards_of(pool, 40) == list(range(40))
    assert left_out == {"odd"}
    assert f"the actor on odd pid 3 is the third that is given up on its node, which is left out: {BROKEN}" in events
    assert len(actors.started) == 5

    left_out.clear()
    alone = LocalActors(answer, lambda _number: "odd")
    capacity = Capacity(1, 1, lambda: 0 if left_out else 1)
    with pytest.raises(DeviceError, match=r"^the GPU failed: CUDA error: an illegal memory access was encountered$"):
        shards_of(ShardPool(alone.start, capacity, max_attempts=9, on_refused=left_out.add), 40)
    assert len(alone.started) == 3


def test_one_broken_gpu_of_many_is_not_tried_for_ever() -> None:
    """That the others of its node go on says nothing of it; they stay, and no more are started there."""
    left_out: set[str] = set()
    bad = {3}

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Receipt:
        if actor.number in bad:
            bad.add(len(actors.started))  # the next one gets the same GPU
            raise BROKEN
        return receipt_for(task, attempt)

    actors = LocalActors(answer)
    capacity = Capacity(1, None, lambda: 0 if left_out else 8)
    pool = ShardPool(actors.start, capacity, depth=1, max_attempts=9, on_refused=left_out.add, poll_seconds=0.0)
    assert shards_of(pool, 400) == list(range(400))
    assert left_out == {"node"}
    assert len(actors.started) == 10


def test_a_stuck_actor_does_not_keep_what_another_failed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that failed waits for another actor, but not for ever."""
    monkeypatch.setattr(attempts_module, "_SECONDS_FOR_OTHERS", 0.2)
    monkeypatch.setattr(pools, "_TICK_SECONDS", 0.05)

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Any:
        if actor.number == 1:
            return Future()
        if task.shard_index == 0 and attempt == 0:
            raise ValueError("once")
        return receipt_for(task, attempt)

    actors = LocalActors(answer)
    stragglers = Stopwatch()
    stragglers.is_up = True
    pool = ShardPool(actors.start, fixed(2), stragglers=stragglers)
    assert shards_of(pool, 20) == list(range(20))


def test_a_question_that_breaks_an_actor_goes_to_another() -> None:
    """As one does whose actor dies; after max_attempts the reason ends the job."""

    def answer(actor: LocalActor, *_: object) -> str:
        if actor.number < 2:
            raise RayTaskError("calibrate", "", BROKEN)
        return "found"

    actors = LocalActors(answer)
    assert ShardPool(actors.start, fixed(1), max_attempts=3).ask("calibrate") == "found"
    assert len(actors.started) == 3
    with pytest.raises(DeviceError, match=r"^the GPU failed"):
        ShardPool(LocalActors(answer).start, fixed(1), max_attempts=2).ask("calibrate")


# --- machines of another kind ----------------------------------------------------------------------------------------

OTHER_KIND = "the plan was made for cpu/a, this process computes on cpu/b"


def refusing(*nodes: str) -> Callable[..., Receipt]:
    """What actors answer that make shards, but not on these nodes."""

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Receipt:
        if actor.node in nodes:
            raise OtherMachineError(OTHER_KIND)
        return receipt_for(task, attempt)

    return answer


def test_a_machine_of_another_kind_is_left_out_and_the_job_goes_on() -> None:
    """Its actors are let go and told of once; their shards are made elsewhere, at no cost of an attempt."""
    left_out: set[str] = set()
    actors = LocalActors(refusing("odd"), lambda number: "odd" if number % 2 and "odd" not in left_out else "good")
    events: list[str] = []
    pool = ShardPool(
        actors.start, fixed(4), depth=DEPTH, max_attempts=1, on_event=events.append, on_refused=left_out.add
    )
    receipts = list(pool.run(tasks(40), 40))
    assert sorted(receipt.shard_index for receipt in receipts) == list(range(40))
    assert {receipt.attempt for receipt in receipts} == {0}
    assert events == [f"the actor on odd pid 1 refused, and its node is left out: {OTHER_KIND}"]
    assert left_out == {"odd"}
    assert [actor.node for actor in actors.started] == ["good", "odd", "good", "odd", "good", "good"]
    assert [actor.number for actor in actors.started if actor.is_dead] == [1, 3]


def test_a_cluster_of_another_kind_ends_the_job_with_the_reason() -> None:
    """Where no node is left, as on one machine alone, the job ends at once with what differs and no word of a shortage."""
    left_out: set[str] = set()
    actors = LocalActors(refusing("odd"), lambda _number: "odd")
    capacity = Capacity(4, 4, lambda: 0 if left_out else 4)
    with pytest.raises(OtherMachineError, match=f"^{OTHER_KIND}$"):
        shards_of(ShardPool(actors.start, capacity, on_refused=left_out.add), 40)
    assert len(actors.started) <= 8


def test_a_shortage_names_the_nodes_that_were_left_out() -> None:
    """Where fewer than the fewest are left, the shortage is told with its reason."""
    left_out: set[str] = set()
    actors = LocalActors(refusing("odd"), lambda number: "odd" if number == 1 else "good")
    capacity = Capacity(2, 2, lambda: 1 if left_out else 2)
    with pytest.raises(
        ClusterError, match=f"^1 of at least 2 actors are ready, .*; nodes were left out: {OTHER_KIND}$"
    ):
        shards_of(ShardPool(actors.start, capacity, on_refused=left_out.add), 40)


def test_actors_that_come_back_to_such_a_machine_end_the_job() -> None:
    """Where its node cannot be left out, because a label asks for it, refusals count as deaths do."""
    actors = LocalActors(refusing("odd"), lambda _number: "odd")
    with pytest.raises(OtherMachineError, match=OTHER_KIND):
        shards_of(ShardPool(actors.start, fixed(2), depth=DEPTH), 40)
    assert len(actors.started) == 6


def test_other_bytes_end_the_job_still() -> None:
    """A shard that gives two results is no matter of the machine's kind, and no other actor is tried."""

    def answer(*_: object) -> Receipt:
        raise DeterminismError("holds other bytes")

    actors = LocalActors(answer)
    with pytest.raises(DeterminismError, match=r"^holds other bytes$"):
        shards_of(ShardPool(actors.start, fixed(2), depth=DEPTH), 40)
    assert len(actors.started) == 2


def test_no_actor_starts_on_a_node_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a node is neither room nor named to Ray, unless the user asks for one by its id."""
    nodes = [
        {"NodeID": name, "Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"ray.io/node-id": name, "zone": zone}}
        for name, zone in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def places(**labels: str) -> Places:
        values = {"bundle": "b", "out": "o", "num_samples": 1, "node_labels": labels}
        return Places(GenerateSpec.parse(values, origin="test"))

    anywhere = places()
    assert "label_selector" not in anywhere.options()
    assert anywhere.room() == 12
    anywhere.leave_out("b")
    anywhere.leave_out("a")
    assert anywhere.options()["label_selector"] == {"ray.io/node-id": "!in(a,b)"}
    assert anywhere.room() == 4
    assert anywhere.describe().endswith("the cluster has 4 CPUs and 0 GPUs on 1 nodes, without 2 that were left out")
    zone = places(zone="1")
    zone.leave_out("a")
    assert zone.options()["label_selector"] == {"ray.io/node-id": "!in(a)", "zone": "1"}
    assert zone.room() == 4
    one = places(**{"ray.io/node-id": "a"})
    one.leave_out("a")
    assert one.options()["label_selector"] == {"ray.io/node-id": "a"}
    assert one.room() == 0


@pytest.mark.parametrize(("share", "gpus", "expected"), [(0.6, 2, 2), (0.4, 2, 4), (1 / 3, 2, 6), (1.0, 3, 3)])
def test_an_actor_has_its_part_of_one_gpu(
    share: float, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of several GPUs makes no place: Ray splits each by itself."""
    node = {"NodeID": "a", "Alive": True, "Resources": {"CPU": 64.0, "GPU": float(gpus)}, "Labels": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    values = {"bundle": "b", "out": "o", "num_samples": 1, "use_gpu": True, "gpus_per_actor": share}
    assert Places(GenerateSpec.parse(values, origin="test")).room() == expected


def test_a_job_without_tasks_needs_no_actor() -> None:
    """Where nothing is missing, a run ends at once though no actor can be placed, and asks for none."""
    nowhere = LocalActors(lambda *_: Future())
    for capacity in (Capacity(1, 1, lambda: 0), Capacity(1, None, lambda: 0, wait_seconds=300.0)):
        assert shards_of(ShardPool(nowhere.start, capacity), 0) == []
    assert nowhere.started == []


def test_the_last_actor_may_go_with_its_work() -> None:
    """An actor that dies after the last receipt is not replaced: there is nothing left to find out from another one."""

    def answer(actor: LocalActor, _method: str, task: Task, attempt: int) -> Receipt:
        if task.shard_index == 3:
            room.clear()
        return receipt_for(task, attempt)

    room = [1]
    actors = LocalActors(answer)
    pool = ShardPool(actors.start, Capacity(1, None, lambda: len(room), wait_seconds=300.0), depth=1)
    found = []
    for receipt in pool.run(tasks(4), 4):
        found.append(receipt.shard_index)
        if not room:
            actors.started[0].die()
    assert found == [0, 1, 2, 3]
    assert len(actors.started) == 1


def test_too_little_room_is_no_matter_of_more_actors_than_tasks() -> None:
    """A cluster that cannot grow has to hold as many actors as can be of use, and is refused with fewer."""
    actors = LocalActors(lambda _actor, _method, task, attempt: receipt_for(task, attempt))
    assert shards_of(ShardPool(actors.start, Capacity(4, 4, lambda: 2)), 2) == [0, 1]
    with pytest.raises(ClusterError, match="4 actors were asked for, , enough for 2"):
        shards_of(ShardPool(actors.start, Capacity(4, 4, lambda: 2)), 3)


def test_a_question_goes_to_a_machine_that_can_answer_it() -> None:
    """A machine that is of no use for the job is left out; where there is no other, its reason ends the job."""
    left_out: set[str] = set()

    def answer(actor: LocalActor, *_: object) -> str:
        if actor.node == "odd":
            raise RayTaskError("calibrate", "", OtherMachineError(OTHER_KIND))
        return "found"

    actors = LocalActors(answer, lambda number: "good" if number else "odd")
    pool = ShardPool(actors.start, Capacity(1, 1, lambda: 1), on_refused=left_out.add)
    assert pool.ask("calibrate", num_tasks=5) == "found"
    assert left_out == {"odd"}

    left_out.clear()
    alone = LocalActors(answer, lambda _number: "odd")
    capacity = Capacity(1, 1, lambda: 0 if left_out else 1)
    with pytest.raises(OtherMachineError, match=f"^{OTHER_KIND}$"):
        ShardPool(alone.start, capacity, on_refused=left_out.add).ask("calibrate", num_tasks=5)


def test_a_question_that_fails_is_one_message() -> None:
    """What no code of ours raised ends the job with its type and text, as it does where shards are made."""

    def answer(*_: object) -> None:
        raise RayTaskError("calibrate", "", ValueError("no such kernel"))

    with pytest.raises(
        JobError, match=r"^calibrate: failed in the actor on .*: ValueError: no such kernel; nothing was made$"
    ):
        ShardPool(LocalActors(answer).start, fixed(1)).ask("calibrate")


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    """A shell starts what runs in the background without SIGINT; SIGTERM stops it as ever."""
    pool = ShardPool(LocalActors(lambda *_: None).start, fixed(1))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended: list[int] = []

    def run() -> None:
        with _draining(pool):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            list(pool.run(tasks(1), 1))

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
        with pytest.raises(Drained):
            run()
        assert ended == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
