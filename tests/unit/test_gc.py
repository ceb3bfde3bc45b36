"""What gc finds and removes: never what readers need, what somebody else made, or what may still be written."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from genworker.bulk import commit
from genworker.bulk.gc import find_garbage, remove
from genworker.bulk.plan import BUNDLE_PREFIX, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.cli import cli
from genworker.errors import DatasetError, PlanError
from genworker.reading import verify
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.stores import Store

PLAN = fake.make_plan()
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
    commit.write_failure(store, PLAN, "a node was lost", 1)
    store.put(".genworker/probe/abc", b"")
    store.put("notes.txt", b"mine")
    store.put(".genworker/notes.txt", b"mine")
    before = keys(store)
    assert find_garbage(store, older_than_seconds=DAY) == []  # all of it is young
    garbage = find_garbage(store, older_than_seconds=DAY, now=time.time() + 2 * DAY)
    assert {item.key for item in garbage} == {
        key for key in before if key.startswith((RECEIPTS_PREFIX, ".genworker/failures/", ".genworker/probe/"))
    }
    assert remove(store, garbage) == len(garbage)
    assert keys(store) == before - {item.key for item in garbage}
    assert verify(url) == []
    assert commit.published(store) is not None


def test_an_unfinished_job_is_left_alone_unless_it_is_given_up(url: str) -> None:
    """It can be resumed, so all of it is needed."""
    fake.publish(url, PLAN, finish=False)
    assert find_garbage(open_store(url), older_than_seconds=0.0) == []


def test_a_job_that_is_given_up_goes_whole_and_nothing_else(url: str) -> None:
    """What others put there stays, also below data/."""
    store = open_store(url)
    fake.publish(url, PLAN, finish=False)
    store.put(BUNDLE_PREFIX + "bundle.json", b"{}")
    for key in ("data/mine.parquet", "readme.txt"):
        store.put(key, b"mine")
    garbage = find_garbage(store, older_than_seconds=DAY, unfinished=True, now=time.time() + 2 * DAY)
    assert garbage[-1].key == PLAN_KEY
    remove(store, garbage)
    assert keys(store) == {"data/mine.parquet", "readme.txt"}


def test_every_stop_of_a_removal_can_be_taken_up(url: str) -> None:
    """After any number of deletions the rest is still a job: no reader sees a dataset, a second removal ends it."""
    total = 1
    for stop in range(1_000):
        place = f"{url}/{stop}"
        fake.publish(place, PLAN)
        store = open_store(place)
        store.delete(SUCCESS_KEY)  # the driver died between manifest and marker
        garbage = find_garbage(store, older_than_seconds=0.0, unfinished=True)
        total = len(garbage)
        if stop >= total:
            break
        remove(store, garbage[:stop])
        assert commit.published(store) is None
        remove(store, find_garbage(store, older_than_seconds=0.0, unfinished=True))
        assert keys(store) == set()
    assert stop == total


def test_a_job_that_may_run_is_not_given_up(url: str) -> None:
    fake.publish(url, PLAN, finish=False)
    with pytest.raises(DatasetError, match=r"wrote something \d s ago, so it may still run"):
        find_garbage(open_store(url), older_than_seconds=DAY, unfinished=True)


def test_a_published_dataset_is_not_given_up(url: str) -> None:
    fake.publish(url, PLAN)
    with pytest.raises(DatasetError, match="is published"):
        find_garbage(open_store(url), older_than_seconds=0.0, unfinished=True)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DatasetError, match="nothing here was made by"):
        find_garbage(open_store(str(tmp_path)), older_than_seconds=0.0)


def test_two_removals_at_once_end_cleanly(url: str) -> None:
    """The one that comes late says so."""
    fake.publish(url, PLAN, finish=False)
    store = open_store(url)
    garbage = find_garbage(store, older_than_seconds=0.0, unfinished=True)
    remove(store, garbage)
    with pytest.raises(PlanError, match="is gone already"):
        remove(store, garbage)


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
