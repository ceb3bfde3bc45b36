"""The commit protocol: any step may be repeated by anybody at any time, and what differs is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.bulk import commit, failures, ledger
from genworker.bulk.manifest import published
from genworker.bulk.plan import (
    BUNDLE_PREFIX,
    CALIBRATION_KEY,
    DATA_PREFIX,
    MANIFEST_KEY,
    PLAN_KEY,
    RECEIPTS_PREFIX,
    SUCCESS_KEY,
)
from genworker.bulk.records import Receipt, ReceiptBatch
from genworker.errors import DatasetError, DeterminismError, ObjectExistsError, PlanError, StoreError
from genworker.reading import open_dataset, verify
from genworker.sampling.calibration import Calibration
from genworker.stores import open_store
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.bulk.plan import Plan
    from genworker.stores import ObjectInfo, Store

PLAN = fake.make_plan()  # 50 samples, four shards


class UnconditionalStore(MemoryStore):
    """A store as some S3 servers are: it looks before a create-only put, and what comes in between is overwritten."""

    @property
    def conditional(self) -> bool:
        return False

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        if not overwrite and any(info.key == key for info in self.list(key)):
            raise ObjectExistsError(f"put {key!r}: taken")
        return super().put(key, data, overwrite=True)


@pytest.fixture(params=["memory", "folder", "unconditional"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(str(tmp_path / "data set"))
    return new_store() if request.param == "memory" else UnconditionalStore(f"memory://{uuid.uuid4().hex}")


def new_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def commit_shards(store: Store, *indices: int, attempt: int = 0) -> list[Receipt]:
    """Commit some shards of PLAN."""
    return [
        commit.commit_shard(store, PLAN.task(index), fake.shard_bytes(PLAN, PLAN.task(index)), attempt)
        for index in indices
    ]


def finish(store: Store) -> bytes:
    """Do what is missing of PLAN, from whatever is there, and return the manifest's bytes."""
    commit.claim(store, PLAN)
    receipts = ledger.committed(store, PLAN)
    made = commit_shards(store, *(index for index in range(PLAN.num_shards) if index not in receipts))
    ledger.write(store, PLAN, made)
    commit.publish(store, PLAN, {**receipts, **{receipt.shard_index: receipt for receipt in made}})
    return store.get(MANIFEST_KEY)


def test_the_whole_way_makes_a_dataset(store: Store) -> None:
    """Claim, commit, receipts, publish: the result is found complete by the reader's full check."""
    finish(store)
    assert verify(store.url) == []
    assert len(open_dataset(store.url)) == 50
    manifest = published(store)
    assert manifest is not None
    assert manifest.plan == PLAN
    assert (manifest.num_samples, len(manifest.shards)) == (50, 4)


def test_everything_may_be_repeated(store: Store) -> None:
    """Doing all steps again changes no object and adds none."""
    finish(store)
    before = {key: store.get(key) for key in keys(store)}
    finish(store)
    commit_shards(store, 0, 1, 2, 3, attempt=5)
    finish(store)
    assert {key: store.get(key) for key in keys(store)} == before


def test_the_manifest_is_the_same_whoever_publishes() -> None:
    """Jobs that made the shards in another order, with other attempts and receipts, write the same bytes."""
    one, other, third = new_store(), new_store(), new_store()
    finish(one)
    commit.claim(other, PLAN)
    for index in (3, 1, 0, 2):
        ledger.write(other, PLAN, commit_shards(other, index, attempt=index))
    commit.claim(third, PLAN)
    commit_shards(third, 2, 0, attempt=1)  # and the driver died before any receipt
    assert finish(one) == finish(other) == finish(third)
    assert one.get(SUCCESS_KEY) == other.get(SUCCESS_KEY) == third.get(SUCCESS_KEY)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 3)),
        st.tuples(st.just("receipt"), st.integers(0, 3)),
        st.tuples(st.just("resume"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(script=steps)
def test_any_history_can_be_finished(script: list[tuple[str, int]]) -> None:
    """Whatever drivers did before they died, in any order and with lost receipts, the next one ends with the same dataset."""
    store = new_store()
    for step, index in script:
        if step == "claim":
            commit.claim(store, PLAN)
        elif step == "commit":
            commit_shards(store, index)
        elif step == "receipt":
            ledger.write(store, PLAN, commit_shards(store, index, attempt=index))
        else:
            ledger.committed(store, PLAN)
    assert finish(store) == EXPECTED_MANIFEST
    assert verify(store.url) == []


EXPECTED_MANIFEST = finish(new_store())

# --- plans -----------------------------------------------------------------------------------------------------------


def test_no_plan_is_none(store: Store) -> None:
    """Where no plan lies, there is none."""
    assert commit.read_plan(store) is None


def test_a_claimed_plan_is_read_back(store: Store) -> None:
    """The plan that was claimed is the plan that is read, and may be claimed again."""
    for _ in range(2):
        commit.claim(store, PLAN)
        assert commit.read_plan(store) == PLAN


@pytest.mark.parametrize("changes", [{"seed": 1}, {"num_samples": 51, "samples_per_shard": 16}, {"codec": "raw"}])
def test_another_plan_is_refused_with_its_differences(store: Store, changes: dict[str, Any]) -> None:
    """A URL that holds another plan keeps it, and the message lists each difference, ours first."""
    commit.claim(store, PLAN)
    before = store.get(PLAN_KEY)
    with pytest.raises(PlanError, match="holds the plan of another dataset") as caught:
        commit.claim(store, fake.make_plan(**changes))
    for key, value in changes.items():
        assert f"{key}: {value!r} here, {getattr(PLAN, key)!r} there" in str(caught.value)
    assert str(caught.value).startswith(store.url)
    assert store.get(PLAN_KEY) == before


def test_another_drivers_numerics_are_accepted(store: Store) -> None:
    """Of two drivers that measured different numerics the first one's hold for both; any other difference is refused."""
    other = PLAN.numerics.model_copy(update={"micro_batch": 16, "memory_format": "channels_last"})
    theirs = PLAN.model_copy(update={"numerics": other})
    assert commit.agree(store, theirs) == theirs
    assert commit.agree(store, PLAN) == theirs
    assert commit.read_plan(store) == theirs
    with pytest.raises(PlanError, match="seed: 9 here, 0 there"):
        commit.agree(store, fake.make_plan(seed=9))


def test_the_first_calibration_stays(store: Store) -> None:
    """What was measured is kept once, and is no part of the plan."""
    for seconds in (1.0, 2.0):
        commit.keep_calibration(store, Calibration(numerics=PLAN.numerics, seconds=seconds, trials=()))
    assert Calibration.model_validate_json(store.get(CALIBRATION_KEY)).seconds == 1.0


class SwappingStore(MemoryStore):
    """A store on which another writer's plan comes right after ours."""

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        info = super().put(key, data, overwrite=overwrite)
        if key == PLAN_KEY:
            super().put(key, fake.make_plan(seed=9).canonical().encode(), overwrite=True)
        return info


def test_a_plan_that_came_after_ours_is_noticed() -> None:
    """On a store that cannot refuse, the plan is read back, and the later one wins."""
    with pytest.raises(PlanError, match="seed: 0 here, 9 there"):
        commit.claim(SwappingStore(f"memory://{uuid.uuid4().hex}"), PLAN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[]", "object|dictionary"),
        (b"{}", "bundle_digest"),
        (PLAN.canonical().replace('"version":1', '"version":2').encode(), "version"),
        (PLAN.canonical().replace('"seed"', '"sead"').encode(), "seed"),
    ],
)
def test_a_damaged_plan_is_refused(content: bytes, message: str) -> None:
    """A plan that cannot be read is an error that names the object and the key, for readers and claimants."""
    store = new_store()
    store.put(PLAN_KEY, content)
    for use in (lambda: commit.read_plan(store), lambda: commit.claim(store, PLAN)):
        with pytest.raises(PlanError, match=message) as caught:
            use()
        assert f"{store.url}/{PLAN_KEY}" in str(caught.value)


def test_the_bundle_lies_beside_the_plan(store: Store) -> None:
    """The bundle is stored once; a damaged or another one is replaced."""
    bundle, other = models.bundle_of(), models.bundle_of(seed=1)
    for _ in range(2):
        commit.store_bundle(store, bundle)
    before = {key: store.get(key) for key in keys(store, BUNDLE_PREFIX)}
    commit.store_bundle(store, other)
    store.put(f"{BUNDLE_PREFIX}bundle.json", b"{", overwrite=True)
    commit.store_bundle(store, bundle)
    assert {key: store.get(key) for key in keys(store, BUNDLE_PREFIX)} == before


# --- shards ----------------------------------------------------------------------------------------------------------


def test_a_receipt_tells_what_was_stored(store: Store) -> None:
    """The receipt has size and digest of the bytes under the key, and the attempt."""
    (receipt,) = commit_shards(store, 3, attempt=2)
    data = store.get(PLAN.shard_key(3))
    assert receipt == Receipt(
        shard_index=3, num_samples=5, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), attempt=2
    )


def test_equal_bytes_under_the_key_are_success(store: Store) -> None:
    """A lost reply, or another worker that was faster, is no error."""
    (first,) = commit_shards(store, 1)
    (second,) = commit_shards(store, 1, attempt=1)
    assert (first.sha256, first.num_bytes) == (second.sha256, second.num_bytes)
    assert keys(store) == [PLAN.shard_key(1)]


@pytest.mark.parametrize("other", [b"", b"other bytes"])
def test_other_bytes_under_the_key_are_an_error(store: Store, other: bytes) -> None:
    """Two results of one task are reported with both digests, and what was there stays."""
    store.put(PLAN.shard_key(1), other)
    with pytest.raises(DeterminismError, match="one plan must give one result") as caught:
        commit_shards(store, 1)
    assert f"{store.url}/{PLAN.shard_key(1)}" in str(caught.value)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert store.get(PLAN.shard_key(1)) == other


def test_receipts_are_stored_once(store: Store) -> None:
    """The same batch, in whatever order, is one object; no receipts are none."""
    receipts = commit_shards(store, 0, 1, 2)
    for order in itertools.permutations(receipts):
        ledger.write(store, PLAN, order)
    ledger.write(store, PLAN, [])
    assert len(keys(store, RECEIPTS_PREFIX)) == 1
    assert dict(ledger.read(store, PLAN)) == dict(enumerate(receipts))


def test_receipts_of_two_attempts_agree(store: Store) -> None:
    """A shard may have several receipts, if they are of the same bytes."""
    for attempt in range(3):
        ledger.write(store, PLAN, commit_shards(store, 1, attempt=attempt))
    assert len(keys(store, RECEIPTS_PREFIX)) == 3
    assert set(ledger.read(store, PLAN)) == {1}


def test_receipts_that_disagree_are_an_error(store: Store) -> None:
    """Two receipts of other bytes for one shard are a violation of determinism, whoever wrote them."""
    (receipt,) = commit_shards(store, 1)
    ledger.write(store, PLAN, [receipt])
    ledger.write(store, PLAN, [receipt.model_copy(update={"sha256": "0" * 64, "attempt": 1})])
    with pytest.raises(DeterminismError, match=re.escape(PLAN.shard_key(1))):
        ledger.committed(store, PLAN)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"plan_id": 5}', b"\xff"])
def test_damaged_receipts_are_named(store: Store, content: bytes) -> None:
    """A receipt object that cannot be read is an error that names it."""
    store.put(f"{RECEIPTS_PREFIX}00000000-x.json", content)
    with pytest.raises(DatasetError, match=f"{RECEIPTS_PREFIX}00000000-x.json"):
        ledger.committed(store, PLAN)


def test_receipts_of_another_plan_are_refused(store: Store) -> None:
    """Receipts name their plan, and another plan's are not taken."""
    batch = ReceiptBatch(plan_id="f" * 16, receipts=tuple(commit_shards(store, 0)))
    store.put(f"{RECEIPTS_PREFIX}00000000-x.json", batch.canonical().encode())
    with pytest.raises(DatasetError, match=f"belongs to plan {'f' * 16}, not {PLAN.plan_id}"):
        ledger.committed(store, PLAN)


# --- what was committed ----------------------------------------------------------------------------------------------


def test_nothing_is_committed_at_first(store: Store) -> None:
    """An empty URL has no shards."""
    assert ledger.committed(store, PLAN) == {}


def test_a_receipt_without_its_shard_does_not_count(store: Store) -> None:
    """Only what is stored is done: a shard that was deleted is made again."""
    ledger.write(store, PLAN, commit_shards(store, 0, 1))
    store.delete(PLAN.shard_key(1))
    assert set(ledger.committed(store, PLAN)) == {0}


def test_a_shard_without_a_receipt_is_adopted(store: Store) -> None:
    """A stored shard whose driver died before the receipt is opened, checked, and counted."""
    (receipt,) = commit_shards(store, 2)
    assert ledger.committed(store, PLAN) == {2: receipt}


def flipped(data: bytes, share: float) -> bytes:
    position = int(share * len(data))
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "garbage": lambda _data: bytes(100),
    "flipped in an image": lambda data: flipped(data, 0.15),
    "flipped in the middle": lambda data: flipped(data, 0.5),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_shard_is_not_adopted(store: Store, how: str) -> None:
    """A shard without a receipt that is not whole is an error that names it, never a part of the dataset."""
    task = PLAN.task(1)
    store.put(task.key, DAMAGES[how](fake.shard_bytes(PLAN, task)))
    with pytest.raises(DatasetError, match=re.escape(f"{store.url}/{task.key}")):
        ledger.committed(store, PLAN)


@pytest.mark.parametrize("other", [fake.make_plan(seed=1), fake.make_plan(num_samples=49)])
def test_a_shard_of_another_plan_is_not_adopted(store: Store, other: Plan) -> None:
    """A whole shard that another plan made is refused by what it says about itself."""
    task = PLAN.task(1)
    store.put(task.key, fake.shard_bytes(other, other.task(1)))
    with pytest.raises(DatasetError, match="it was not written by this job") as caught:
        ledger.committed(store, PLAN)
    assert other.plan_id in str(caught.value)


def test_another_shard_of_the_plan_is_not_adopted(store: Store) -> None:
    """A shard under another shard's key is refused."""
    store.put(PLAN.shard_key(1), fake.shard_bytes(PLAN, PLAN.task(2)))
    with pytest.raises(DatasetError, match=re.escape(PLAN.shard_key(1))):
        ledger.committed(store, PLAN)


@pytest.mark.parametrize(
    "key", ["notes.txt", "train-00004-of-00005.parquet", "train-00000-of-00004.parquet.tmp", "sub/train-0.parquet"]
)
def test_a_foreign_object_below_data_is_refused(store: Store, key: str) -> None:
    """Nothing but the plan's shards may lie below data/, because globbing readers would take it for one."""
    store.put(DATA_PREFIX + key, b"x")
    with pytest.raises(DatasetError, match=re.escape(f"{store.url}/{DATA_PREFIX}{key}: is no shard")):
        ledger.committed(store, PLAN)


def test_objects_elsewhere_do_not_matter(store: Store) -> None:
    """A README beside the data is nobody's business."""
    store.put("README.md", b"x")
    store.put("database/notes.txt", b"x")
    assert ledger.committed(store, PLAN) == {}


def test_a_shard_that_was_changed_later_is_refused(store: Store) -> None:
    """A shard of another size than its receipt says is an error, not work to do."""
    ledger.write(store, PLAN, commit_shards(store, 1))
    store.put(PLAN.shard_key(1), b"short", overwrite=True)
    with pytest.raises(DatasetError, match="5 bytes, its receipt says"):
        ledger.committed(store, PLAN)


# --- publishing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_nothing_is_published_while_shards_are_missing(store: Store, missing: tuple[int, ...]) -> None:
    """Without a receipt of every shard there is no manifest, and the message counts what is missing."""
    there = [index for index in range(4) if index not in missing]
    receipts = dict(zip(there, commit_shards(store, *there), strict=True))
    with pytest.raises(DatasetError, match=f"{len(missing)} of 4 shards are missing, first {missing[0]}"):
        commit.publish(store, PLAN, receipts)
    assert published(store) is None
    assert keys(store, "_") == []


@pytest.mark.parametrize("change", ["gone", "resized", "foreign"])
def test_nothing_is_published_when_the_store_differs_from_the_receipts(store: Store, change: str) -> None:
    """What changed between the last commit and the manifest stops the job, and nothing is published."""
    receipts = dict(enumerate(commit_shards(store, 0, 1, 2, 3)))
    if change == "gone":
        store.delete(PLAN.shard_key(1))
    elif change == "resized":
        store.put(PLAN.shard_key(1), b"short", overwrite=True)
    else:
        store.put(f"{DATA_PREFIX}extra.parquet", b"x")
    key = f"{DATA_PREFIX}extra.parquet" if change == "foreign" else PLAN.shard_key(1)
    with pytest.raises(DatasetError, match=re.escape(key)):
        commit.publish(store, PLAN, receipts)
    assert keys(store, "_") == []


def test_another_manifest_is_not_overwritten(store: Store) -> None:
    """A manifest of other content under the URL is reported, and stays."""
    receipts = dict(enumerate(commit_shards(store, 0, 1, 2, 3)))
    store.put(MANIFEST_KEY, b"other")
    with pytest.raises(DeterminismError, match=MANIFEST_KEY):
        commit.publish(store, PLAN, receipts)
    assert store.get(MANIFEST_KEY) == b"other"
    assert SUCCESS_KEY not in keys(store)


class Stubborn(MemoryStore):
    """A store that says of free keys that they are taken, ``times`` times each."""

    times = 1

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        asked = self.__dict__.setdefault("asked", {})
        asked[key] = asked.get(key, 0) + 1
        if key.startswith("_") and asked[key] <= self.times:
            raise ObjectExistsError(f"put {key!r}: taken")
        return super().put(key, data, overwrite=overwrite)


def test_what_is_taken_and_not_there_is_put_again() -> None:
    """A conflict that ended, or a deletion, does not stop a job at its last step; one that never ends is told."""
    store = Stubborn(f"memory://{uuid.uuid4().hex}")
    finish(store)
    assert verify(store.url) == []
    store = Stubborn(f"memory://{uuid.uuid4().hex}")
    store.times = 9
    with pytest.raises(StoreError, match=f"{MANIFEST_KEY}: the store says 3 times"):
        finish(store)


def test_a_dataset_without_success_is_not_published_yet(store: Store) -> None:
    """A driver that died between manifest and _SUCCESS left no dataset; the next one completes it with equal bytes."""
    text = finish(store)
    store.delete(SUCCESS_KEY)
    assert published(store) is None
    assert finish(store) == text
    assert published(store) is not None


@pytest.mark.parametrize("key", [MANIFEST_KEY, SUCCESS_KEY])
@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff"])
def test_a_damaged_manifest_is_named(store: Store, key: str, content: bytes) -> None:
    """A finished dataset whose manifest or marker cannot be read is an error in one line, not an unfinished one."""
    finish(store)
    store.put(key, content, overwrite=True)
    with pytest.raises(DatasetError, match=f"{key}: .*it is damaged") as caught:
        published(store)
    assert len(str(caught.value).splitlines()) == 1


def test_a_manifest_that_was_changed_is_no_dataset(store: Store) -> None:
    """Well formed as it is, the marker does not vouch for it."""
    text = finish(store)
    digest = json.loads(text)["shards"][0]["sha256"]
    store.put(MANIFEST_KEY, text.replace(digest.encode(), b"0" * 64), overwrite=True)
    with pytest.raises(DatasetError, match=f"{MANIFEST_KEY}: has SHA-256 .*_SUCCESS says"):
        published(store)


def test_a_plan_of_a_format_that_is_not_known_is_damaged(store: Store) -> None:
    """As one of a later version would be."""
    commit.claim(store, PLAN)
    text = store.get(commit.PLAN_KEY).replace(b'"format":"parquet"', b'"format":"zip"')
    store.put(commit.PLAN_KEY, text, overwrite=True)
    with pytest.raises(PlanError, match=f"{commit.PLAN_KEY}: format 'zip': .*it is damaged or of another version"):
        commit.read_plan(store)


def test_a_plan_beyond_any_reason_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an object under the plan's key no more is fetched than a plan can have."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, PLAN)
    size = len(store.get(commit.PLAN_KEY))
    monkeypatch.setattr(commit, "MAX_PLAN_BYTES", size)
    assert commit.read_plan(store) == PLAN
    monkeypatch.setattr(commit, "MAX_PLAN_BYTES", size - 1)
    with pytest.raises(PlanError, match=f"plan.json: has more than {size - 1} bytes"):
        commit.read_plan(store)


def test_what_is_larger_than_anything_written_here_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of receipts beyond any reason is refused by its listed size; a failure, which only informs, tells nothing."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, PLAN)
    failures.write(store, PLAN, "the disk is full", 1)
    store.put(RECEIPTS_PREFIX + "0.json", b" " * 5_000)
    monkeypatch.setattr(ledger, "MAX_RECEIPTS_BYTES", 4_999)
    monkeypatch.setattr(failures, "MAX_NOTE_BYTES", 10)
    fetched: list[str] = []
    monkeypatch.setattr(type(store), "get", lambda _self, key, **_part: fetched.append(key))
    with pytest.raises(DatasetError, match=r"receipts/0\.json: has 5000 bytes; no batch of receipts has so many"):
        ledger.read(store, PLAN)
    told = failures.read(store)
    assert (told.count, told.error) == (1, None)
    assert fetched == []
