"""What a URL without a plan may hold: what the same plan left, and nothing that its job would stumble over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.bulk.vacancy import check_vacant
from genworker.errors import DatasetError
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Callable

PLAN, OTHER = fake.make_plan(seed=0), fake.make_plan(seed=7)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A published dataset of PLAN that lost its plan."""
    fake.publish(str(tmp_path / "set"), PLAN)
    (tmp_path / "set" / PLAN_KEY).unlink()
    return tmp_path / "set"


def keep(*names: str) -> Callable[[Path], None]:
    """Remove all but some of the files and folders of a dataset."""

    def remove(folder: Path) -> None:
        for path in (folder / MANIFEST_KEY, folder / SUCCESS_KEY):
            if path.name not in names:
                path.unlink()
        for name in ("data", RECEIPTS_PREFIX):
            if name not in names:
                shutil.rmtree(folder / name)

    return remove


def put(name: str, content: bytes) -> Callable[[Path], None]:
    """Put a file into an otherwise empty folder."""

    def write(folder: Path) -> None:
        shutil.rmtree(folder)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)

    return write


@pytest.mark.parametrize(
    "what", [(MANIFEST_KEY,), (SUCCESS_KEY,), (RECEIPTS_PREFIX,), ("data",), (MANIFEST_KEY, SUCCESS_KEY, "data")]
)
def test_what_another_plan_left_is_an_obstacle(left: Path, what: tuple[str, ...]) -> None:
    """Each part of it alone is found, and named; the plan that left it finds it no obstacle."""
    keep(*what)(left)
    store = open_store(str(left))
    check_vacant(store, PLAN)
    with pytest.raises(DatasetError, match=r": is there without a plan.*; nothing was written$") as caught:
        check_vacant(store, OTHER)
    assert any(name in str(caught.value) for name in what)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (put(MANIFEST_KEY, b"{}"), "_manifest.json: is there without a plan, and .*damaged"),
        (put("data/notes.txt", b"mine"), r"data/notes\.txt: is there without a plan and is no shard"),
        (put(f"{MANIFEST_KEY}/x", b"mine"), "_manifest.json/x: is there where _manifest.json belongs"),
        (put(f"{SUCCESS_KEY}/x", b"mine"), "_SUCCESS/x: is there where _SUCCESS belongs"),
        (put("data", b"mine"), "data: is an object where the folder of the shards belongs"),
        (put(PLAN.shard_key(0), b"torn"), "data/.*: is there without a plan: "),
    ],
)
def test_what_is_foreign_or_damaged_is_an_obstacle(left: Path, change: Callable[[Path], None], word: str) -> None:
    """Also for the plan to which it may once have belonged."""
    change(left)
    with pytest.raises(DatasetError, match=word):
        check_vacant(open_store(str(left)), PLAN)


def test_other_things_are_none(tmp_path: Path) -> None:
    """An empty place, one that is not there, and files beside the dataset's own."""
    check_vacant(open_store(str(tmp_path / "nowhere")), PLAN)
    (tmp_path / "README.md").write_text("about the data")
    check_vacant(open_store(str(tmp_path)), PLAN)


def test_what_another_driver_claimed_meanwhile_is_left_to_the_claim(left: Path) -> None:
    """Its objects lie there because it is at work."""
    store = open_store(str(left))
    store.put(PLAN_KEY, PLAN.canonical().encode())
    check_vacant(store, OTHER)


def test_files_without_their_table_are_an_obstacle(tmp_path: Path) -> None:
    """Nobody can tell whose they are; with a table they are the plan's own, or of another."""
    plan = fake.make_plan(format="files", seed=0)
    fake.publish(str(tmp_path / "set"), plan)
    keep("data")(tmp_path / "set")
    (tmp_path / "set" / PLAN_KEY).unlink()
    store = open_store(str(tmp_path / "set"))
    check_vacant(store, plan)
    with pytest.raises(DatasetError, match="is there without a plan: says that it is") as caught:
        check_vacant(store, fake.make_plan(format="files", seed=7))
    assert "run the command again" not in str(caught.value)
    for index in range(plan.num_shards):
        store.delete(plan.shard_key(index))
    with pytest.raises(DatasetError, match="so nobody knows whose it is; write to another URL"):
        check_vacant(store, plan)


def test_a_first_shard_in_the_making_is_no_obstacle(tmp_path: Path) -> None:
    """A driver of the same plan that was killed leaves files without a table; the next whole shard tells whose they are."""
    plan = fake.make_plan(format="files", seed=0)
    fake.publish(str(tmp_path / "set"), plan)
    keep("data")(tmp_path / "set")
    for key in (PLAN_KEY, plan.shard_key(0)):
        (tmp_path / "set" / key).unlink()
    check_vacant(open_store(str(tmp_path / "set")), plan)
