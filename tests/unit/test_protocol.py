"""The commit protocol under all interleavings: two drivers, three attempts at each shard by each, kills at every step.

The explorer runs the protocol's own code (tests/interleavings.py). `python -m pytest -rP` prints how much was explored.
"""

from __future__ import annotations

import threading
import uuid
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genworker.bulk import commit, ledger, protocol
from genworker.bulk.layout import beside_key
from genworker.bulk.manifest import read_manifest
from genworker.bulk.plan import BUNDLE_PREFIX, DATA_PREFIX, MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY, Plan
from genworker.bulk.protocol import Driver, State
from genworker.bulk.records import Receipt, ReceiptBatch
from genworker.bundle import BUNDLE_KEY, WEIGHTS_KEY
from genworker.errors import DatasetError, DeterminismError, JobError, PlanError, StoreError
from genworker.reading import verify
from genworker.schema import ImageSchema
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake
from tests.fakes import models
from tests.fakes.actors import receipt_for
from tests.interleavings import Explorer, ViolationError, filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from genworker.bulk.plan import Task
    from genworker.stores import ObjectInfo, Store

SCHEMA = ImageSchema(channels=1, height=2, width=2, num_classes=2)
BUNDLE = models.bundle_of(schema=SCHEMA)


def plan_of(num_shards: int, **changes: Any) -> Plan:
    values = {"codec": "raw", "bundle_digest": BUNDLE.digest} | changes
    return fake.make_plan(schema=SCHEMA, num_samples=2 * num_shards, samples_per_shard=2, **values)


def make_in(store: Store, plan: Plan) -> Callable[[Iterator[Task]], Iterator[Receipt]]:
    """Makers that do one task after the other."""

    def make(task: Task) -> Receipt:
        files, table = same_bytes(plan, task, 0)
        for name, data in files.items():
            commit.put_same(store, beside_key(task.key, name), data, 0)
        return commit.commit_shard(store, task, table, 0, beside_bytes=sum(map(len, files.values())))

    return lambda tasks: map(make, tasks)


def finish(store: Store, plan: Plan) -> None:
    """Run one driver to its end."""
    Driver(store, plan, BUNDLE, make_in(store, plan)).run()


def reference(plan: Plan) -> dict[str, bytes]:
    """What readers see after one undisturbed run, with the plan."""
    return _reference(plan.canonical())


@cache
def _reference(text: str) -> dict[str, bytes]:
    plan = Plan.model_validate_json(text)
    store = MemoryStore(f"memory://{uuid.uuid4().hex}")
    finish(store, plan)
    keys = [info.key for info in store.list(DATA_PREFIX)] + [MANIFEST_KEY, SUCCESS_KEY, PLAN_KEY]
    return {key: store.get(key) for key in keys}


def check_of(*plans: Plan) -> Callable[[dict[str, bytes]], None]:
    """What must hold of the stored objects at every moment."""

    def check(there: dict[str, bytes]) -> None:
        store = filled(there)
        plan = commit.read_plan(store)
        assert plan is None or plan in plans, "the plan is nobody's"
        right = reference(plan) if plan else {}
        for key, data in there.items():
            if key.startswith(DATA_PREFIX) or key in {MANIFEST_KEY, SUCCESS_KEY}:
                assert data == right.get(key), f"{key} is wrong"
        if any(key.startswith(DATA_PREFIX) for key in there):
            assert {BUNDLE_PREFIX + BUNDLE_KEY, BUNDLE_PREFIX + WEIGHTS_KEY} <= there.keys(), "shards before the bundle"
        if MANIFEST_KEY in there:
            assert right.keys() - {SUCCESS_KEY} <= there.keys(), "a manifest before the shards that it names"
        if SUCCESS_KEY in there:
            assert MANIFEST_KEY in there, "_SUCCESS before the manifest"
            assert read_manifest(store).canonical().encode() == right[MANIFEST_KEY]
        else:
            with pytest.raises(DatasetError):
                read_manifest(store)
        for key, data in there.items():
            if key.startswith(RECEIPTS_PREFIX):
                for receipt in ReceiptBatch.model_validate_json(data).receipts:
                    assert plan is not None
                    assert plan.shard_key(receipt.shard_index) in there, "a receipt before its shard"

    return check


def same_bytes(plan: Plan, task: Task, number: int) -> tuple[dict[str, bytes], bytes]:
    files: dict[str, bytes] = {}
    return files, fake.shard_bytes(plan, task, files.__setitem__)


def explore(*plans: Plan, **changes: Any) -> Explorer:
    """Explore two drivers; prints the size of what was explored."""
    values: dict[str, Any] = {"bundle": BUNDLE, "shard": same_bytes, "check": check_of(*plans)} | changes
    explorer = Explorer(plans, **values).explore()
    print(  # noqa: T201
        f"{explorer.worlds:,} worlds, {explorer.steps:,} steps, {explorer.kills:,} kills, {len(explorer.stores)} contents "
        f"of the store; {plans[0].num_shards} shards, {', '.join(f'{k}={v}' for k, v in changes.items())}"
    )
    return explorer


# --- the protocol ----------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "two shards": {},
    "a listing in pages": {"page": 1},
    "lost replies": {"lost_replies": True},
    "no conditional puts": {"conditional": False},
    "receipts at the end": {"receipts_per_object": 256},
    "many files": {"page": 1, "attempts": 2},
}
CODECS = {"many files": {"codec": "png", "format": "files"}}
SHARDS = {"two shards": 2, "receipts at the end": 2}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_interleaving_is_safe_and_can_be_finished(variant: str) -> None:
    """No reader ever sees a wrong or unfinished dataset, and no driver ends in an error.

    Wherever all of them died, the next run publishes the bytes of the undisturbed run.
    """
    plan = plan_of(SHARDS.get(variant, 1), **CODECS.get(variant, {}))
    explorer = explore(plan, plan, **VARIANTS[variant])
    assert explorer.worlds > 1_000
    assert explorer.kills > 100
    assert explorer.ends == {(True, True)}
    for there in explorer.stores:
        store = filled(there)
        finish(store, plan)
        assert {key: store.get(key) for key in reference(plan)} == reference(plan)
        assert {info.key for info in store.list(DATA_PREFIX)} <= reference(plan).keys()
    assert verify(store.url) == []


@pytest.mark.parametrize("changes", [{"attempts": 2}, {"attempts": 1, "conditional": False}])
def test_the_reductions_lose_nothing(changes: dict[str, Any]) -> None:
    """With every step at every possible time, the same contents of the store are reached."""
    plan = plan_of(1)
    reduced, whole = explore(plan, plan, **changes), explore(plan, plan, reduce=False, **changes)
    assert whole.worlds > 2 * reduced.worlds
    assert {frozenset(there.items()) for there in whole.stores} == {
        frozenset(there.items()) for there in reduced.stores
    }
    assert whole.ends <= reduced.ends == {(True, True)}


def test_of_two_plans_one_wins() -> None:
    """Drivers of two plans at one URL: one publishes, the other always ends in the error that names the difference."""
    explorer = explore(
        plan_of(1), plan_of(1, seed=1), check=check_of(plan_of(1), plan_of(1, seed=1)), allowed=(PlanError,)
    )
    assert explorer.ends == {(True, False), (False, True)}


def test_two_plans_need_conditional_puts() -> None:
    """Without them two *different* plans that are claimed in the same instant can overwrite each other: the one limit."""
    plans = plan_of(1), plan_of(1, seed=1)
    with pytest.raises(ViolationError, match=f"{PLAN_KEY} was there and was changed"):
        explore(*plans, conditional=False, allowed=(PlanError, DeterminismError))


# --- the explorer finds what is wrong --------------------------------------------------------------------------------


class ManifestFirst(Driver):
    """Publishes what it expects to make."""

    def _recall(self) -> State:
        self._store.put(MANIFEST_KEY, reference(self._plan)[MANIFEST_KEY])
        return super()._recall()


class SuccessFirst(Driver):
    """Writes _SUCCESS as soon as all shards are there, and the manifest behind it."""

    def _publish(self) -> State:
        commit._put_equal(self._store, SUCCESS_KEY, reference(self._plan)[SUCCESS_KEY])
        return super()._publish()


class BundleLast(Driver):
    """Makes shards before it stores what they are made with."""

    def _claim(self) -> State:
        super()._claim()
        return State.RECALL


class AloneInTheWorld(Driver):
    """Takes a manifest that is there for somebody else's mistake."""

    def _publish(self) -> State:
        self._store.put(MANIFEST_KEY, reference(self._plan)[MANIFEST_KEY])
        return super()._publish()


class ReceiptsFirst(Driver):
    """Writes receipts for what is still to be made."""

    def _store_bundle(self) -> State:
        super()._store_bundle()
        ledger.write(self._store, self._plan, make_in(filled({}), self._plan)(self._plan.tasks()))
        return State.RECALL


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (ManifestFirst, "a manifest before the shards that it names"),
        (SuccessFirst, "_SUCCESS before the manifest"),
        (BundleLast, "shards before the bundle"),
        (AloneInTheWorld, "ended with ObjectExistsError"),
        (ReceiptsFirst, "a receipt before its shard"),
    ],
)
def test_a_protocol_that_is_wrong_is_found(mutant: type[Driver], message: str) -> None:
    """Each mutant leads to a world that must not be, and the way there is told."""
    plan = plan_of(1)
    with pytest.raises(ViolationError, match=message) as caught:
        explore(plan, plan, driver=mutant)
    assert len(str(caught.value).splitlines()) > 3


def own_bytes(plan: Plan, task: Task, number: int) -> tuple[dict[str, bytes], bytes]:
    """Bytes that differ from attempt to attempt."""
    return {}, fake.shard_bytes(plan, task) + bytes([number]) * number


def overwriting(store: Store, task: Task, data: bytes, attempt: int, *, beside_bytes: int) -> Receipt:
    store.put(task.key, data, overwrite=True)
    return commit.commit_shard(store, task, data, attempt)


def test_overwriting_attempts_are_found() -> None:
    """Attempts that overwrite and differ change what was there already."""
    plan = plan_of(1)
    with pytest.raises(ViolationError, match=f"{DATA_PREFIX}.* was there and was changed"):
        explore(plan, plan, shard=own_bytes, commit_shard=overwriting, check=lambda _there: None)


def test_attempts_that_differ_never_publish_a_mixture() -> None:
    """Bytes that differ from attempt to attempt end drivers with the error that says so; what is published fits together."""

    def check(there: dict[str, bytes]) -> None:
        if SUCCESS_KEY in there:
            store = filled(there)
            for entry in read_manifest(store).shards:
                assert store.head(entry.key).sha256 == entry.sha256

    plan = plan_of(1)
    changes = {"shard": own_bytes, "check": check}
    with pytest.raises(ViolationError, match="ended with DeterminismError"):
        explore(plan, plan, **changes)
    explorer = explore(plan, plan, allowed=(DeterminismError, DatasetError), **changes)
    assert (False, False) in explorer.ends


# --- one driver ------------------------------------------------------------------------------------------------------


class PlanSwapped(MemoryStore):
    """A store without conditions on which another plan comes over ours while shards are made."""

    conditional = False  # type: ignore[assignment]

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        if key.startswith(DATA_PREFIX):
            super().put(PLAN_KEY, plan_of(1, seed=1).canonical().encode(), overwrite=True)
        return super().put(key, data, overwrite=overwrite)


def test_a_plan_that_was_replaced_is_not_published() -> None:
    """Where the store does not hold the plan fast, it is read again before the manifest."""
    store = PlanSwapped(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(PlanError, match="seed: 0 here, 1 there"):
        finish(store, plan_of(1))
    assert [info.key for info in store.list("_")] == []


class Full(MemoryStore):
    """A store that takes no receipts."""

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        if key.startswith(RECEIPTS_PREFIX):
            raise StoreError("no receipts today")
        return super().put(key, data, overwrite=overwrite)


@pytest.mark.parametrize("kind", [MemoryStore, Full])
def test_what_ended_a_run_is_the_error_that_is_told(kind: type[MemoryStore]) -> None:
    """When makers fail, receipts of what was made are stored if the store takes them, and the makers' error is raised."""
    store, plan = kind(f"memory://{uuid.uuid4().hex}"), plan_of(3)

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        yield next(make_in(store, plan)(tasks))
        raise JobError("enough")

    with pytest.raises(JobError, match="enough"):
        Driver(store, plan, BUNDLE, make).run()
    assert len(ledger.read(store, plan)) == (kind is MemoryStore)
    assert ledger.committed(store, plan).keys() == {0}


def test_a_driver_tells_what_was_there_and_what_was_made() -> None:
    """Callbacks get each receipt once, recalled or new."""
    store, plan = filled({}), plan_of(3)
    commit.commit_shard(store, plan.task(1), fake.shard_bytes(plan, plan.task(1)), 0)
    recalled: list[int] = []
    made: list[int] = []
    driver = Driver(
        store,
        plan,
        BUNDLE,
        make_in(store, plan),
        on_recalled=recalled.extend,
        on_made=lambda receipt: made.append(receipt.shard_index),
        receipts_per_object=2,
    )
    states = []
    while driver.state is not State.DONE:
        states.append(driver.state.value)
        driver.step()
    assert (recalled, made) == ([1], [0, 2])
    assert states == ["claim", "bundle", "recall", "make", "record", "make", "make", "record", "make", "publish"]
    assert verify(store.url) == []


def test_a_shard_that_was_recalled_is_not_counted_again() -> None:
    """What was in flight when another driver was met arrives behind the recall, and is known by then."""
    store, plan = filled({}), plan_of(6)
    counted: list[int] = []

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        given = list(tasks)
        make_here = make_in(store, plan)
        list(make_here(iter(given)))  # the other driver's
        yield from make_here(iter(given))  # ours, all of them duplicates, the first of which leads to a recall

    def begin(receipts: Mapping[int, Receipt]) -> None:
        counted[:] = receipts

    driver = Driver(store, plan, BUNDLE, make, on_recalled=begin, on_made=lambda r: counted.append(r.shard_index))
    driver.run()
    assert sorted(counted) == list(range(6))
    assert sum(len(batch.receipts) for batch in batches(store)) == 6
    assert verify(store.url) == []


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 11))), max_size=30))
def test_every_missing_task_is_given_once_wherever_it_is_drawn(meetings: list[tuple[bool, set[int]]]) -> None:
    """The explorer lets makers take any missing shard next; the order that a driver draws has them all, each once.

    ``meetings``: for each task that is drawn, whether another driver was met behind it, and what that one has made.
    """
    store, plan = filled({}), plan_of(12)
    driver = Driver(store, plan, BUNDLE, make_in(store, plan))
    drawn: list[int] = []
    for task in driver._missing():
        assert task.shard_index not in driver.receipts
        drawn.append(task.shard_index)
        met, made = meetings[len(drawn) - 1] if len(drawn) <= len(meetings) else (False, set[int]())
        driver._elsewhere |= met
        for index in made if met else ():
            driver.receipts[index] = receipt_for(plan.task(index), 0)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) | set(driver.receipts) == set(range(12))


def batches(store: Store) -> list[ReceiptBatch]:
    """All that was recorded."""
    return [ReceiptBatch.model_validate_json(store.get(info.key)) for info in store.list(RECEIPTS_PREFIX)]


@pytest.mark.parametrize("fits", [True, False])
def test_shards_without_receipts_are_adopted_side_by_side_and_told(monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    """What a killed driver left is checked by as many threads as memory holds shards, in order, and is told."""
    monkeypatch.setattr(ledger, "num_processors", lambda: 3)
    if not fits:
        monkeypatch.setattr(ledger, "_MOST_BYTES", 1)
    store, plan = filled({}), plan_of(40)
    list(make_in(store, plan)(plan.tasks()))
    told: list[tuple[int, int]] = []
    threads: set[str] = set()

    class Watched(MemoryStore):
        def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if key.startswith(DATA_PREFIX):
                threads.add(threading.current_thread().name)
            return super().get(key, start=start, length=length)

    driver = Driver(Watched(store.url), plan, BUNDLE, make_in(store, plan), on_adopted=lambda *seen: told.append(seen))
    driver.run()
    assert told == [(done, 40) for done in range(1, 41)]
    assert (threading.main_thread().name in threads) != fits
    assert sorted(r.shard_index for batch in batches(store) for r in batch.receipts) == list(range(40))
    assert verify(store.url) == []


def test_a_shard_that_cannot_be_adopted_costs_the_others_nothing() -> None:
    """The receipts of those before it are stored, and its error is told."""
    store, plan = filled({}), plan_of(40)
    list(make_in(store, plan)(plan.tasks()))
    key = plan.task(30).key
    store.put(key, store.get(key)[:-1], overwrite=True)
    with pytest.raises(DatasetError, match=key):
        Driver(store, plan, BUNDLE, make_in(store, plan)).run()
    assert sorted(r.shard_index for batch in batches(store) for r in batch.receipts) == list(range(30))


@pytest.mark.parametrize(("seconds", "sizes"), [(0.0, [1, 11]), (61.0, [1] * 12)])
def test_receipts_do_not_wait_for_long(monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]) -> None:
    """Batches grow with the job, but after a minute what waits is stored: a successor has to look into no more than that."""
    now = [0.0]
    monkeypatch.setattr(protocol, "_PART_OF_DONE", 1)
    monkeypatch.setattr(protocol, "time", SimpleNamespace(monotonic=lambda: now[0]))
    store, plan = filled({}), plan_of(12)

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        for receipt in make_in(store, plan)(tasks):
            now[0] += seconds
            yield receipt

    Driver(store, plan, BUNDLE, make, receipts_per_object=1).run()
    assert [len(batch.receipts) for batch in batches(store)] == sizes


def test_two_drivers_share_the_work() -> None:
    """Drivers that begin together meet at once, go on at other places, and leave out what the other has made."""
    store, plan = filled({}), plan_of(60)
    made = 0

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        nonlocal made
        for receipt in make_in(store, plan)(tasks):
            made += 1
            yield receipt

    drivers = [Driver(store, plan, BUNDLE, make) for _ in range(2)]
    while left := [driver for driver in drivers if driver.state is not State.DONE]:
        for driver in left:
            driver.step()
    assert made < 1.5 * plan.num_shards  # twice, if they did not
    assert verify(store.url) == []
