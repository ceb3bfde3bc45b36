"""Shards of plain image files: written by the commit protocol, seen by Hugging Face and DuckDB, checked by our readers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker.bulk import commit, ledger
from genworker.bulk.beside import Beside
from genworker.bulk.gc import find_garbage
from genworker.bulk.layout import Layout, beside_key
from genworker.errors import DatasetError, DeterminismError, UsageError
from genworker.reading import open_dataset, verify
from genworker.reading.status import status
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.bulk.records import Receipt
    from genworker.stores.base import Store

PLAN = fake.make_plan(format="files", columns=("label", "latents", "score"))
NUM = PLAN.num_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published dataset of PNG files with all columns, control objects included."""
    fake.publish(str(tmp_path / "set"), PLAN, num_receipt_copies=3)
    return tmp_path / "set"


@pytest.fixture
def store() -> Store:
    """An empty store with the plan."""
    found = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(found, PLAN)
    return found


def image_key(sample: int, extension: str = "png") -> str:
    return beside_key(PLAN.shard_key(PLAN.shard_of(sample)), f"{sample:012d}.{extension}")


def made(store: Store, index: int, *, finish: bool = True) -> Receipt | None:
    """Commit one shard, or stop after its files."""
    task = PLAN.task(index)
    with Beside(store, task, 0) as beside:
        data = fake.shard_bytes(PLAN, task, beside.put)
        beside_bytes = beside.wait()
        return commit.commit_shard(store, task, data, 0, beside_bytes=beside_bytes) if finish else None


def test_shards_are_folders_of_images_with_a_table(folder: Path) -> None:
    """Each image is a file of its own that opens as it is; the table beside names all of them in order."""
    shards = sorted((folder / "data").iterdir())
    assert [path.name for path in shards] == [f"train-{index:05d}-of-00004" for index in range(4)]
    table = pq.read_table(shards[1] / "metadata.parquet")
    assert table.column_names == ["file_name", "sample_index", "label", "latents", "score", "size", "sha256"]
    assert table.column("file_name").to_pylist() == [f"{index:012d}.png" for index in range(15, 30)]
    assert {path.name for path in shards[1].iterdir()} == {*table.column("file_name").to_pylist(), "metadata.parquet"}
    with Image.open(shards[1] / "000000000016.png") as image:
        np.testing.assert_array_equal(np.asarray(image), fake.pixels_of(fake.SCHEMA, np.array([16]))[0])


def test_hugging_face_sees_an_image_folder(folder: Path, tmp_path: Path) -> None:
    """load_dataset(folder) picks its imagefolder builder by itself, with labels, latents and scores from the tables."""
    script = """
import sys
import numpy as np
from datasets import Image, load_dataset
from tests.fakes import dataset as fake
from genworker.schema import Extras
rows = load_dataset(sys.argv[1])
assert list(rows) == ["train"], rows
assert rows["train"].features["image"] == Image(), rows["train"].features
found = sorted(rows["train"], key=lambda row: row["sample_index"])
expected = fake.samples_of(fake.SCHEMA, np.arange(50), Extras(fake.LATENT_DIM, True))
assert [row["sample_index"] for row in found] == list(range(50))
assert [row["label"] for row in found] == expected.labels.tolist()
np.testing.assert_array_equal(np.array([row["latents"] for row in found], np.float32), expected.latents)
np.testing.assert_array_equal(np.array([row["score"] for row in found], np.float32), expected.scores)
for row, pixels in zip(found, expected.pixels, strict=True):
    np.testing.assert_array_equal(np.asarray(row["image"]), pixels)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment)


def test_duckdb_reads_the_tables_and_finds_the_files(folder: Path) -> None:
    """The tables of all shards are one table to DuckDB, latents as lists."""
    with duckdb.connect() as connection:
        source = f"read_parquet('{folder}/data/*/metadata.parquet', filename=true)"
        query = f"SELECT sample_index, latents[2], size, filename, file_name FROM {source} ORDER BY 1"  # noqa: S608  our own path
        rows = connection.execute(query).fetchall()
    assert [row[0] for row in rows] == list(range(NUM))
    for index, second, size, table, name in rows:
        assert second == pytest.approx(index + 1 / 7)
        assert os.stat(os.path.join(os.path.dirname(table), name)).st_size == size  # noqa: PTH116, PTH118, PTH120


def test_our_own_readers_see_every_sample_once(folder: Path) -> None:
    """Passes and random access give pixels and all columns; verify finds nothing; Arrow has no images to give."""
    dataset = open_dataset(str(folder))
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM), PLAN.extras)
    for part, name in ((dataset.batches(), "all"), (dataset.read(7, 33), "some")):
        batches = list(part)
        rows = np.arange(NUM) if name == "all" else np.arange(7, 33)
        np.testing.assert_array_equal(np.concatenate([b.sample_index for b in batches]), rows)
        np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), expected.pixels[rows])
        np.testing.assert_array_equal(np.concatenate([b.latents for b in batches]), expected.latents[rows])
        np.testing.assert_array_equal(np.concatenate([b.scores for b in batches]), expected.scores[rows])
    np.testing.assert_array_equal(dataset[31].pixels, expected.pixels[31])
    assert sorted(row["index"] for row in dataset.to_torch()) == list(range(NUM))
    assert verify(str(folder)) == []
    with pytest.raises(UsageError, match="are files, which Arrow cannot read"):
        dataset.to_arrow()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda store: store.delete(image_key(20)), "000000000020.png is missing"),
        (lambda store: store.put(image_key(20), store.get(image_key(20))[:-4], overwrite=True), "000000000020.png has"),
        (
            lambda store: store.put(image_key(20), b"x" * len(store.get(image_key(20))), overwrite=True),
            "20.png has SHA-256",
        ),
        (lambda store: store.put(image_key(20), store.get(image_key(21)), overwrite=True), "000000000020.png has"),
        (
            lambda store: store.put(PLAN.shard_key(1), store.get(PLAN.shard_key(2)), overwrite=True),
            "holds the bytes of",
        ),
        (lambda store: store.delete(PLAN.shard_key(1)), "is missing, the manifest names it"),
    ],
)
def test_bad_files_are_named_refused_and_skipped(folder: Path, change: object, problem: str) -> None:
    """A file that is missing, cut, changed or swapped is named by verify, stops a pass, or costs it the rest of a shard."""
    store = open_store(str(folder))
    assert callable(change)
    change(store)
    faults = verify(str(folder))
    assert [fault.key for fault in faults] == [PLAN.shard_key(1)]
    assert problem in faults[0].problem
    with pytest.raises(DatasetError, match="train-00001-of-00004"):
        list(open_dataset(str(folder)).batches())
    dataset = open_dataset(str(folder), on_bad_shard="skip")
    seen = [sample.index for sample in dataset]
    assert seen == [*range(15), *range(30, NUM)]
    assert [fault.key for fault in dataset.skipped] == [PLAN.shard_key(1)]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "000000000016.png/../000000000015.png", "000000000017.png", "x.png", ""]
)
def test_hostile_names_in_the_table_are_refused(name: str) -> None:
    """A table whose names are not those of its samples, paths above all, is refused before a file is asked for."""
    maker = PLAN.open_format()
    table = pq.read_table(io.BytesIO(fake.shard_bytes(PLAN, PLAN.task(1))))
    names = table.column("file_name").to_pylist()
    changed = table.set_column(0, "file_name", pa.array([names[0], name, *names[2:]]))
    sink = io.BytesIO()
    pq.write_table(changed, sink)

    def never(asked: str) -> bytes:
        raise AssertionError(asked)

    with pytest.raises(DatasetError, match="is said to lie in"):
        maker.reader(sink.getvalue(), never)


def test_impossible_sizes_are_refused() -> None:
    """A size that no image of the dataset can have is refused before a file is asked for."""
    table = pq.read_table(io.BytesIO(fake.shard_bytes(PLAN, PLAN.task(1))))
    for size in (-1, 2**40):
        changed = table.set_column(5, "size", pa.array([size] * len(table), pa.int64()))
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        with pytest.raises(DatasetError, match="no image of this dataset has more than"):
            PLAN.open_format().reader(sink.getvalue())


def test_files_of_unfinished_shards_are_taken_over(store: Store) -> None:
    """A driver that died among the files leaves no shard; the next attempt finds its files equal, and all is published."""
    made(store, 0)
    made(store, 1, finish=False)
    store.delete(image_key(17))
    assert sorted(ledger.committed(store, PLAN)) == [0]
    seen = status(store)
    assert (seen.shards_done, seen.num_foreign) == (1, 0)
    receipts = {index: receipt for index in range(4) if (receipt := made(store, index)) is not None}
    adopted = ledger.committed(store, PLAN)
    assert {i: r.sha256 for i, r in adopted.items()} == {i: r.sha256 for i, r in receipts.items()}
    manifest = commit.publish(store, PLAN, adopted)
    assert manifest.num_bytes == sum(info.size for info in store.list("data/"))
    assert verify(store.url) == []


def test_a_file_with_other_bytes_is_a_violation(store: Store) -> None:
    """An attempt that meets other bytes under a file's name fails, and leaves no table."""
    store.put(image_key(16), b"other")
    with pytest.raises(DeterminismError, match=r"000000000016\.png: holds 5 bytes"):
        made(store, 1)
    assert PLAN.shard_key(1) not in {info.key for info in store.list()}


@pytest.mark.parametrize(
    "name",
    [
        "000000000014.png",
        "000000000030.png",
        "000000000016.jpg",
        "16.png",
        "x.png",
        "sub/000000000016.png",
        "metadata.csv",
    ],
)
def test_strangers_among_the_files_are_refused(store: Store, name: str) -> None:
    """Only the files of a shard's own samples may lie beside its table, before and after publication."""
    key = beside_key(PLAN.shard_key(1), name)
    store.put(key, b"x")
    with pytest.raises(DatasetError, match="is no shard of plan"):
        ledger.committed(store, PLAN)
    store.delete(key)
    receipts = {index: receipt for index in range(4) if (receipt := made(store, index)) is not None}
    store.put(key, b"x")
    with pytest.raises(DatasetError, match="is foreign, missing or of another size"):
        commit.publish(store, PLAN, receipts)
    store.delete(key)
    commit.publish(store, PLAN, receipts)
    store.put(key, b"x")
    assert [fault.key for fault in verify(store.url)] == [key]


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_files_that_changed_since_their_receipt_stop_publication(store: Store, change: str) -> None:
    """A file that is gone or has another size is found by the next run and before the manifest is written."""
    receipts = {index: receipt for index in range(4) if (receipt := made(store, index)) is not None}
    ledger.write(store, PLAN, receipts.values())
    if change == "missing":
        store.delete(image_key(16))
    else:
        store.put(image_key(16), b"x" * 999, overwrite=True)
    for step in (lambda: ledger.committed(store, PLAN), lambda: commit.publish(store, PLAN, receipts)):
        with pytest.raises(DatasetError, match="train-00001-of-00004"):
            step()


def test_all_files_of_a_job_that_is_given_up_may_go(store: Store) -> None:
    """Garbage collection counts the files among what a job made, and the layout knows every one of them."""
    made(store, 1, finish=False)
    garbage = find_garbage(store, older_than_seconds=0, unfinished=True)
    assert {item.key for item in garbage} == {info.key for info in store.list()}
    layout = Layout(PLAN)
    assert sorted(layout.beside(PLAN.task(1))) == [info.key for info in store.list("data/")]
