"""What gc finds and removes: never what readers need, what somebody else made, or what may still be written."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from genworker.bulk import commit, failures, gc
from genworker.bulk.gc import find_garbage, give_up, remove
from genworker.bulk.manifest import published
from genworker.bulk.plan import BUNDLE_PREFIX, MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, REMOVING_KEY, SUCCESS_KEY
from genworker.bulk.protocol import Driver
from genworker.bulk.removal import GC, NOTICES, RETAIN, check_kept
from genworker.bulk.retention import find_old
from genworker.cli import cli
from genworker.errors import DatasetError, GenworkerError, PlanError
from genworker.reading import verify
from genworker.schema import ImageSchema
from genworker.stores import open_store
from tests.fakes import dataset as fake
from tests.fakes import models
from tests.fakes.stores import Around, Stopping, interleave
from tests.interleavings import filled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from genworker.bulk.plan import Task
    from genworker.bulk.records import Receipt
    from genworker.stores import Store

PLAN = fake.make_plan()
SMALL = ImageSchema(channels=1, height=2, width=2, num_classes=2)
BUNDLE = models.bundle_of(schema=SMALL)
ONE_SHARD = fake.make_plan(schema=SMALL, num_samples=2, samples_per_shard=2, codec="raw", bundle_digest=BUNDLE.digest)
DAY = 86_400.0


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list()}


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def test_a_published_dataset_loses_its_receipts_only(url: str) -> None:
    """And probes, and failures that were overcome; readers and later runs of the same job notice nothing."""
    fake.publish(url, PLAN, num_receipt_copies=2)
    store = open_store(url)
    failures.write(store, PLAN, "a node was lost", 1)
    store.put(f".genworker/probe/{uuid.uuid4().hex}", b"")
    store.put("notes.txt", b"mine")
    store.put(".genworker/notes.txt", b"mine")
    store.put(f"{RECEIPTS_PREFIX}notes.txt", b"mine")
    before = keys(store)
    assert find_garbage(store, older_than_seconds=DAY) == []  # all of it is young
    garbage = find_garbage(store, older_than_seconds=DAY, now=time.time() + 2 * DAY)
    assert {item.key for item in garbage} == {
        key
        for key in before
        if key.startswith((RECEIPTS_PREFIX, ".genworker/failures/", ".genworker/probe/")) and "notes" not in key
    }
    assert remove(store, garbage) == len(garbage)
    assert keys(store) == before - {item.key for item in garbage}
    assert verify(url) == []
    assert published(store) is not None


def test_an_unfinished_job_is_left_alone_unless_it_is_given_up(url: str) -> None:
    """It can be resumed, so all of it is needed."""
    fake.publish(url, PLAN, finish=False)
    assert find_garbage(open_store(url), older_than_seconds=0.0) == []


def test_a_job_that_is_given_up_goes_whole_and_nothing_else(url: str) -> None:
    """What others put there stays, also below data/."""
    store = open_store(url)
    fake.publish(url, PLAN, finish=False)
    store.put(BUNDLE_PREFIX + "bundle.json", b"{}")
    mine = {
        "data/mine.parquet",
        "readme.txt",
        ".genworker/notes/a.txt",
        BUNDLE_PREFIX + "notes.md",
        RECEIPTS_PREFIX + "x.json",
    }
    for key in mine:
        store.put(key, b"mine")
    later = time.time() + 2 * DAY
    listed = find_garbage(store, older_than_seconds=DAY, unfinished=True, now=later)
    assert {item.key for item in listed} == keys(store) - mine
    assert give_up(store, older_than_seconds=DAY, now=later) == listed
    assert keys(store) == mine


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("key", [MANIFEST_KEY, SUCCESS_KEY])
def test_nothing_of_a_dataset_with_a_damaged_manifest_goes(url: str, key: str, unfinished: bool) -> None:
    """Its receipts are the other copy of the digests."""
    fake.publish(url, PLAN, num_receipt_copies=1)
    store = open_store(url)
    store.put(key, b"", overwrite=True)
    before = keys(store)
    with pytest.raises(DatasetError, match=key):
        give_up(store, older_than_seconds=0.0) if unfinished else find_garbage(store, older_than_seconds=0.0)
    assert keys(store) == before


def test_every_stop_of_a_removal_can_be_taken_up(url: str) -> None:
    """After every change no reader sees a dataset and no driver may begin; the next call ends the removal, and only it does."""
    for budget in itertools.count():
        store = open_store(f"{url}/{budget}/job")
        fake.publish(store.url, PLAN)
        store.delete(SUCCESS_KEY)  # the driver died between manifest and marker
        store.put("data/mine.parquet", b"mine")
        stopping = Stopping(store, budget)
        try:
            give_up(stopping, older_than_seconds=0.0)  # type: ignore[arg-type]
        except InterruptedError:
            assert published(store) is None
            if budget:  # the notice is there
                with pytest.raises(PlanError, match="`genworker gc --unfinished --delete` is removing this dataset"):
                    check_kept(store)
                assert find_old(open_store(f"{url}/{budget}"), 0) == []
            give_up(store, older_than_seconds=0.0)
        assert keys(store) == {"data/mine.parquet"}
        check_kept(store)
        if stopping.left:
            break
    assert budget > 10


def make_in(store: Store, plan: Any) -> Any:
    """Makers that do one task after the other."""

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        for task in tasks:
            yield commit.commit_shard(store, task, fake.shard_bytes(plan, task), 0)

    return make


@pytest.mark.parametrize("gate", [60.0, 0.0])
@pytest.mark.parametrize("gc_first", [True, False])
def test_a_driver_that_resumes_during_a_removal_publishes_no_part(url: str, gc_first: bool, gate: float) -> None:
    """Each stopped at every request while the other goes on, and then on: what is published is whole, whoever wins."""
    fake.publish(url, ONE_SHARD, finish=False)
    commit.store_bundle(open_store(url), BUNDLE)
    silent = {key: open_store(url).get(key) for key in keys(open_store(url))}
    done: set[str] = set()

    def run(store: Store) -> None:
        with contextlib.suppress(GenworkerError):
            Driver(store, ONE_SHARD, BUNDLE, make_in(store, ONE_SHARD)).run()
            done.add("published")

    def delete(store: Store) -> None:
        with contextlib.suppress(GenworkerError):
            give_up(store, older_than_seconds=gate, now=now + gate)
            done.add("removed")

    ends = set()
    for one in itertools.count():
        for two in itertools.count():
            store = filled(silent)
            now = time.time()  # what is written from here on is younger than the gate
            done.clear()
            processes = (delete, run) if gc_first else (run, delete)
            reached = interleave(*processes, store, (one, two))
            if published(store) is not None:
                assert verify(store.url) == []
            elif gate:
                assert "published" not in done
            assert REMOVING_KEY not in keys(store)
            ends.add(frozenset(done))
            if not reached[1]:
                break
        if not reached[0]:
            break
    assert {frozenset({"published"}), frozenset({"removed"})} <= ends


@pytest.mark.parametrize("whole", [False, True])
def test_a_driver_that_was_running_says_so_and_writes_no_more(url: str, whole: bool) -> None:
    """Whether a removal has begun or has ended meanwhile: the error tells, and no manifest and no failure is put."""
    store = open_store(url)
    left: set[str] = set()

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        yield from make_in(store, ONE_SHARD)(tasks)
        if whole:
            give_up(store, older_than_seconds=0.0)
        else:
            store.put(REMOVING_KEY, NOTICES[GC])
        left.update(keys(store))

    told = "vanished after it was written" if whole else "`genworker gc --unfinished --delete` is removing this dataset"
    with pytest.raises(PlanError, match=told):
        Driver(store, ONE_SHARD, BUNDLE, make, receipts_per_object=1).run()
    assert keys(store) == left


class Resuming(Around):
    """A store on which a driver wakes up right after the notice was put."""

    def before(self, method: str, key: str) -> None:
        """The first thing that comes after it is the second look."""
        if (method, key) == ("get", PLAN_KEY) and REMOVING_KEY in keys(self._store):
            self._store.put(f"{RECEIPTS_PREFIX}00000000-{'a' * 16}.json", b"{}")


def test_a_job_that_wakes_up_is_not_given_up(url: str) -> None:
    """What it wrote between the look and the notice is found by the second look, and the notice is taken back."""
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    before = keys(store)
    time.sleep(0.1)
    with pytest.raises(DatasetError, match="so it may still run"):
        give_up(Resuming(store), older_than_seconds=0.1)  # type: ignore[arg-type]
    assert keys(store) == before | {f"{RECEIPTS_PREFIX}00000000-{'a' * 16}.json"}
    check_kept(store)


def test_a_job_that_may_run_is_not_given_up(url: str) -> None:
    """Nor is it disturbed: not even the notice is put."""
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    with pytest.raises(DatasetError, match=r"wrote something \d s ago, so it may still run"):
        find_garbage(store, older_than_seconds=DAY, unfinished=True)
    with pytest.raises(DatasetError, match=r"wrote something \d s ago, so it may still run"):
        give_up(Stopping(store, 0), older_than_seconds=DAY)  # type: ignore[arg-type]


def test_a_published_dataset_is_not_given_up(url: str) -> None:
    fake.publish(url, PLAN)
    store = open_store(url)
    with pytest.raises(DatasetError, match="is published"):
        find_garbage(store, older_than_seconds=0.0, unfinished=True)
    with pytest.raises(DatasetError, match="is published"):
        give_up(Stopping(store, 0), older_than_seconds=0.0)  # type: ignore[arg-type]


def test_a_notice_that_came_too_late_does_no_harm(url: str) -> None:
    """A removal that died before it found the dataset published: `retain` keeps the dataset, `gc` takes the notice away."""
    store = open_store(f"{url}/day")
    fake.publish(store.url, PLAN)
    store.put(REMOVING_KEY, NOTICES[GC])
    assert find_old(open_store(url), 1) == []
    garbage = find_garbage(store, older_than_seconds=0.0)
    assert REMOVING_KEY in {item.key for item in garbage}
    remove(store, garbage)
    check_kept(store)
    assert verify(store.url) == []


def test_a_clock_that_is_ahead_gives_up_no_running_job(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are told by the store's clock, which the notice brings; this machine's may be wrong by days."""
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    before, here = keys(store), time.time() + 2 * DAY
    monkeypatch.setattr(gc, "time", SimpleNamespace(time=lambda: here))
    with pytest.raises(DatasetError, match=r"wrote something \d s ago, so it may still run"):
        give_up(store, older_than_seconds=DAY)
    assert keys(store) == before


def test_what_retain_removes_is_left_to_it(url: str) -> None:
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    store.put(REMOVING_KEY, NOTICES[RETAIN])
    with pytest.raises(DatasetError, match="`genworker retain --delete` is removing this dataset"):
        give_up(store, older_than_seconds=0.0)
    assert REMOVING_KEY in keys(store)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DatasetError, match="nothing here was made by"):
        find_garbage(open_store(str(tmp_path)), older_than_seconds=0.0)


def test_two_removals_at_once_end_cleanly(url: str) -> None:
    """Wherever one is when the other comes and ends, nothing of the job is left; one that comes later says so."""

    def delete(store: Store) -> None:
        with contextlib.suppress(DatasetError):
            give_up(store, older_than_seconds=0.0)

    for at in itertools.count():
        store = open_store(f"{url}/{at}")
        fake.publish(store.url, ONE_SHARD, finish=False)
        reached, _ = interleave(delete, delete, store, (at, 10**6))
        assert keys(store) == set()
        if not reached:
            break
    with pytest.raises(DatasetError, match="nothing here was made by"):
        give_up(store, older_than_seconds=0.0)


def test_the_command_only_lists_until_it_is_told_to_delete(tmp_path: Path) -> None:
    fake.publish(str(tmp_path), PLAN)
    store = open_store(str(tmp_path))
    before = keys(store)
    run = CliRunner()
    listed = run.invoke(cli, ["gc", str(tmp_path), "--older-than", "0s"])
    assert listed.exit_code == 0
    assert "remove them with --delete" in listed.output
    assert keys(store) == before
    facts = json.loads(run.invoke(cli, ["gc", str(tmp_path), "--older-than", "0s", "--json"]).output)
    assert facts["removed"] == 0
    done = run.invoke(cli, ["gc", str(tmp_path), "--older-than", "0s", "--delete"])
    assert f"removed: {len(facts['garbage'])} objects" in done.output
    assert not list(store.list(RECEIPTS_PREFIX))
    assert verify(str(tmp_path)) == []


def test_the_command_gives_up_a_job(tmp_path: Path) -> None:
    fake.publish(str(tmp_path), PLAN, finish=False)
    store = open_store(str(tmp_path))
    run = CliRunner()
    listed = run.invoke(cli, ["gc", str(tmp_path), "--unfinished", "--older-than", "0s"])
    assert f"found:   {len(keys(store))} objects" in listed.output
    num_objects = len(keys(store))
    done = run.invoke(cli, ["gc", str(tmp_path), "--unfinished", "--older-than", "0s", "--delete"])
    assert f"removed: {num_objects} objects" in done.output
    assert keys(store) == set()
