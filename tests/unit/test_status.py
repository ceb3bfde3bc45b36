"""What storage tells of a job: how far it is, at which rate, and how its last driver ended."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from genworker.bulk import commit, failures, ledger
from genworker.bulk.plan import FAILURES_PREFIX, PLAN_KEY, REMOVING_KEY
from genworker.bulk.protocol import Driver
from genworker.bulk.removal import GC, NOTICES, RETAIN
from genworker.cli import cli
from genworker.errors import DatasetError, JobError
from genworker.reading.status import status
from genworker.stores import open_store
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from genworker.bulk.plan import Task
    from genworker.bulk.records import Receipt
    from genworker.stores import ObjectInfo, Store

PLAN = fake.make_plan(num_samples=100, samples_per_shard=10)
NOON = 1_800_000_000.0


class TimedStore(MemoryStore):
    """A store whose objects have the times that a test gives them; by default all are of noon."""

    times: dict[str, float]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            yield dataclasses.replace(info, modified=self.times.get(info.key, NOON))


@pytest.fixture
def store() -> TimedStore:
    store = TimedStore(f"memory://{uuid.uuid4().hex}")
    store.times = {}
    commit.claim(store, PLAN)
    return store


def put_shard(store: TimedStore, index: int, seconds: float) -> None:
    task = PLAN.task(index)
    commit.commit_shard(store, task, fake.shard_bytes(PLAN, task), 0)
    store.times[task.key] = NOON + seconds


def test_a_url_without_a_plan_is_refused() -> None:
    """A wrong URL is not taken for a job that has not started."""
    with pytest.raises(DatasetError, match="no job was started here"):
        status(MemoryStore(f"memory://{uuid.uuid4().hex}"))


def test_a_claimed_plan_has_not_started(store: TimedStore) -> None:
    seen = status(store, NOON + 5)
    assert (seen.state, seen.shards_done, seen.shards_missing) == ("not started", 0, 10)
    assert (seen.last_write_seconds, seen.samples_per_second, seen.eta_seconds) == (None, None, None)


def test_a_running_job_has_a_rate_and_an_end(store: TimedStore) -> None:
    """Four shards of ten samples, ten seconds apart: one sample a second, and sixty are left."""
    for index in range(4):
        put_shard(store, index * 2, index * 10)  # in any order of shards
    seen = status(store, NOON + 32)
    assert (seen.state, seen.shards_done, seen.samples_done) == ("running", 4, 40)
    assert (seen.samples_per_second, seen.eta_seconds, seen.last_write_seconds) == (1.0, 60.0, 2.0)
    assert seen.bytes_done == sum(info.size for info in store.list("data/"))


def test_the_rate_is_that_of_the_last_minutes(store: TimedStore) -> None:
    """A night between two runs of a job is not part of its rate."""
    put_shard(store, 0, 0)
    put_shard(store, 1, 40_000)
    put_shard(store, 2, 40_005)
    assert status(store, NOON + 40_006).samples_per_second == 2.0


def test_a_silent_job_has_stopped(store: TimedStore) -> None:
    """After minutes without a write; but a job whose shards take an hour is given several hours."""
    put_shard(store, 0, 0)
    put_shard(store, 1, 10)
    assert status(store, NOON + 100).state == "running"
    stopped = status(store, NOON + 10 + 121)
    assert (stopped.state, stopped.eta_seconds) == ("stopped", None)
    put_shard(store, 2, 3_610)
    put_shard(store, 3, 7_210)
    assert status(store, NOON + 7_210 + 3 * 3_600).state == "running"
    assert status(store, NOON + 7_210 + 6 * 3_600).state == "stopped"


def test_a_published_dataset_and_foreign_objects(store: TimedStore) -> None:
    for index in range(10):
        put_shard(store, index, index)
    store.put("data/notes.txt", b"mine")
    assert status(store, NOON + 20).num_foreign == 1
    store.delete("data/notes.txt")
    commit.publish(store, PLAN, ledger.committed(store, PLAN))
    seen = status(store, NOON + 10**6)
    assert (seen.state, seen.shards_missing, seen.samples_done, seen.eta_seconds) == ("published", 0, 100, None)


def test_a_plan_that_is_not_the_manifests_is_told(store: TimedStore) -> None:
    """What lies there was made by another; `verify` says what differs."""
    for index in range(10):
        put_shard(store, index, index)
    commit.publish(store, PLAN, ledger.committed(store, PLAN))
    store.put(PLAN_KEY, PLAN.model_copy(update={"seed": 99}).canonical().encode(), overwrite=True)
    with pytest.raises(DatasetError, match=rf"plan\.json: is plan .*, the manifest is of {PLAN.plan_id}"):
        status(store, NOON + 20)


@pytest.mark.parametrize("command", [GC, RETAIN])
@pytest.mark.parametrize("complete", [True, False])
def test_a_removal_is_told(store: TimedStore, command: str, *, complete: bool) -> None:
    """What a removal has not reached yet is no running job; the notice of one that found the job published is none."""
    for index in range(10):
        put_shard(store, index, index)
    if complete:
        commit.publish(store, PLAN, ledger.committed(store, PLAN))
    store.put(REMOVING_KEY, NOTICES[command])
    seen = status(store, NOON + 10)
    late = complete and command == GC
    assert (seen.state, seen.removal) == (("published", None) if late else ("being removed", command))
    done = CliRunner().invoke(cli, ["status", store.url, "--watch"])
    assert (done.exit_code == 0) == late
    assert late or f"`{command}` is removing this dataset" in done.stderr
    assert late or f"let `{command}` end" in CliRunner().invoke(cli, ["status", store.url]).stdout


@pytest.mark.parametrize(
    "key", ["data/train-00003-of-00010.tar", "data/train-3-of-10.parquet", "data/x-99999-of-00010"]
)
def test_only_exact_keys_are_shards(key: str) -> None:
    assert PLAN.shard_index_of(key) is None
    assert [PLAN.shard_index_of(task.key) for task in PLAN.tasks()] == list(range(10))


def failing(tasks: Iterator[Task]) -> Iterator[Receipt]:
    raise JobError("data/train-00000-of-00010.parquet: failed 3 times")
    yield


def test_the_last_failure_is_told_until_work_goes_on() -> None:
    """A driver that fails leaves its message; a newer shard makes it history. Another plan's URL is left alone."""
    bundle = models.bundle_of()
    plan = PLAN.model_copy(update={"bundle_digest": bundle.digest})
    store = TimedStore(f"memory://{uuid.uuid4().hex}")
    store.times = {}
    with pytest.raises(JobError):
        Driver(store, plan, bundle, failing).run()
    seen = status(store, NOON + 1)
    assert (seen.state, seen.failure) == ("failed", "data/train-00000-of-00010.parquet: failed 3 times")
    put = plan.task(4)
    commit.commit_shard(store, put, fake.shard_bytes(plan, put), 0)
    store.times[put.key] = NOON + 5
    seen = status(store, NOON + 6)
    assert (seen.state, seen.failure, seen.num_failures) == ("running", None, 1)

    other = plan.model_copy(update={"seed": 7})
    before = [info.key for info in store.list()]
    with pytest.raises(Exception, match="holds the plan of another dataset"):
        Driver(store, other, bundle, failing).run()
    assert [info.key for info in store.list()] == before


class Busy(TimedStore):
    """A store to which another actor puts a shard ahead of each failure and behind it, until it is ended."""

    plan = PLAN
    ended = False

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        for index in (1, 2) if key.startswith(FAILURES_PREFIX) and not self.ended else ():
            task = self.plan.task(index)
            commit.commit_shard(self, task, fake.shard_bytes(self.plan, task), 0)
            self.times[task.key] = NOON + index
        return super().put(key, data, overwrite=overwrite)

    def end(self) -> None:
        self.ended = True


def test_nothing_comes_behind_a_failure() -> None:
    """A driver ends its makers before it records what ended it, so that their shards do not make it history."""
    bundle = models.bundle_of()
    store = Busy(f"memory://{uuid.uuid4().hex}")
    store.times, store.plan = {}, PLAN.model_copy(update={"bundle_digest": bundle.digest})
    with pytest.raises(JobError):
        Driver(store, store.plan, bundle, failing, end_makers=store.end).run()
    assert status(store, NOON + 3).state == "failed"


def test_a_job_that_stopped_tells_its_last_failure(store: TimedStore) -> None:
    """What another driver made after a failure does not hide it for good."""
    for name in ("the disk is full", "the disk is full again"):
        failures.write(store, PLAN, name, 0)
    put_shard(store, 1, 5)
    assert (status(store, NOON + 6).state, status(store, NOON + 6).failure) == ("running", None)
    seen = status(store, NOON + 1_000)
    assert (seen.state, seen.num_failures) == ("stopped", 2)
    assert seen.failure in {"the disk is full", "the disk is full again"}  # of one moment


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], terminal_width=200)


def unfinished(url: str) -> Store:
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    store.delete(PLAN.shard_key(3))
    return store


def test_the_command_says_it_all(tmp_path: Path) -> None:
    store = unfinished(str(tmp_path))
    result = run("status", tmp_path)
    assert result.exit_code == 0, result.output
    assert "9 of 10 shards (1 missing)" in result.output
    assert "90 of 100 (90.0%)" in result.output
    facts: dict[str, Any] = json.loads(run("status", tmp_path, "--json").output)
    assert (facts["state"], facts["shards_done"]) == ("running", 9)
    failures.write(store, PLAN, "the disk is full", 9)
    assert "failed   1 failure, the last one: the disk is full" in run("status", tmp_path).output
    watched = run("status", tmp_path, "--watch")
    assert watched.exit_code == 1
    assert "1 failure" in watched.output.splitlines()[0]
    assert "the job failed: the disk is full" in watched.output


def test_watching_ends_with_a_job_that_stopped_after_a_failure(tmp_path: Path) -> None:
    """Not with one that stopped without a word, because it may have been told to, and is resumed."""
    store = unfinished(str(tmp_path))
    failures.write(store, PLAN, "the disk is full", 9)
    silent = time.time() - 3_600
    for path in [*tmp_path.rglob("*.parquet"), *tmp_path.rglob("*.json")]:
        os.utime(path, (silent, silent - 60 * ("failures" in path.parts)))
    watched = run("status", tmp_path, "--watch")
    assert watched.exit_code == 1
    assert "the job stopped, and its last failure was: the disk is full" in watched.output


def test_watching_waits_for_the_job_to_begin(tmp_path: Path) -> None:
    """Started before the job is, it says that it waits, and goes on when the plan is there."""
    begins = threading.Timer(1.0, fake.publish, (str(tmp_path), PLAN))
    begins.start()
    result = run("status", tmp_path, "--watch", "--every", "1s")
    begins.join()
    assert result.exit_code == 0, result.output
    assert result.output.count("waiting for a job: there is no ") == 1
    assert "published  100.0%" in result.output


def test_watching_ends_with_the_dataset(tmp_path: Path) -> None:
    fake.publish(str(tmp_path), PLAN)
    result = run("status", tmp_path, "--watch", "--every", "1s")
    assert result.exit_code == 0
    assert "published  100.0%  10 of 10 shards" in result.output


@pytest.mark.parametrize("value", ["5", "5 s", "-1h", "soon", "1w"])
def test_a_duration_needs_a_number_and_a_unit(value: str) -> None:
    result = run("status", "anywhere", "--every", value)
    assert result.exit_code == 2
    assert "as in 24h" in result.output
