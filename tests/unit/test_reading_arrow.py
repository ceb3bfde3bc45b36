"""`Dataset.to_arrow`: a pyarrow dataset over the manifest's shards, from any store."""

from __future__ import annotations

import pickle
import uuid
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import genworker
from genworker import codecs
from genworker.errors import ObjectMissingError, UsageError
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import S3Server

NUM = 50


@pytest.fixture(params=["memory", "folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, moto: S3Server, point_at: Callable[[S3Server], None]) -> str:
    """An empty place in each kind of store."""
    point_at(moto)
    places = {
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "folder": lambda: str(tmp_path),
        "s3": lambda: f"s3://{moto.new_bucket()}/sets/one",
    }
    return places[request.param]()


def test_arrow_sees_every_sample_of_the_manifest_and_nothing_else(url: str) -> None:
    """Rows, columns and filters are those of the dataset, and files that the manifest does not name are not read."""
    fake.publish(url, fake.make_plan(num_samples=NUM))
    open_store(url).put("data/train-00004-of-00004.parquet", b"a stranger")
    dataset = genworker.open(url)
    arrow = dataset.to_arrow()
    assert isinstance(arrow, ds.Dataset)
    assert arrow.files == [shard.key for shard in dataset.manifest.shards]
    table = arrow.to_table()
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM))
    assert expected.labels is not None
    assert table.column("sample_index").to_pylist() == list(range(NUM))
    assert table.column("label").to_pylist() == expected.labels.tolist()
    codec = codecs.make("png", fake.SCHEMA)
    for row, pixels in zip(table.column("image").to_pylist(), expected.pixels, strict=True):
        np.testing.assert_array_equal(codec.decode(row["bytes"]), pixels)
    assert arrow.count_rows(filter=ds.field("label") == 1) == int((expected.labels == 1).sum())
    assert arrow.to_table(columns=["label"], filter=ds.field("sample_index") >= 45).num_rows == 5


def test_arrow_dataset_feeds_polars_and_duckdb(tmp_path: Path) -> None:
    """Polars and DuckDB take the pyarrow dataset as it is."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM))
    arrow = genworker.open(str(tmp_path)).to_arrow()
    assert pl.scan_pyarrow_dataset(arrow).select("sample_index").collect().height == NUM
    with duckdb.connect() as connection:
        connection.register("samples", arrow)
        assert connection.execute("SELECT count(*), max(sample_index) FROM samples").fetchone() == (NUM, NUM - 1)


def test_arrow_dataset_travels_to_other_processes(tmp_path: Path) -> None:
    """The dataset and its file system survive pickling, as Ray and Dask ask of them."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM))
    arrow = genworker.open(str(tmp_path)).to_arrow()
    files = pickle.loads(pickle.dumps(arrow.filesystem))  # noqa: S301  what we pickled ourselves
    assert files == arrow.filesystem
    assert ds.dataset(arrow.files, filesystem=files, format="parquet").count_rows() == NUM
    assert pickle.loads(pickle.dumps(arrow)).count_rows() == NUM  # noqa: S301


def test_a_flipped_bit_is_not_given_as_a_sample(tmp_path: Path) -> None:
    """Pages are compared with their checksums, by pyarrow and by what reads through it, also in other processes."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM))
    arrow = genworker.open(str(tmp_path)).to_arrow()
    assert arrow.to_table().num_rows == NUM
    path = tmp_path / arrow.files[1]
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)
    for damaged in (arrow, pickle.loads(pickle.dumps(arrow))):  # noqa: S301
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            damaged.to_table()
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pl.scan_pyarrow_dataset(damaged).select("image").collect()
        assert damaged.to_table(columns=["label"]).num_rows == NUM  # from pages that are whole


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    """Tar shards are a UsageError, a shard that is gone an ObjectMissingError, and nothing can be written."""
    fake.publish(str(tmp_path / "tar"), fake.make_plan(format="webdataset"))
    with pytest.raises(UsageError, match=r"its shards are webdataset, which Arrow cannot read; .*--format parquet"):
        genworker.open(str(tmp_path / "tar")).to_arrow()
    fake.publish(str(tmp_path / "set"), fake.make_plan())
    dataset = genworker.open(str(tmp_path / "set"))
    arrow = dataset.to_arrow()
    with pytest.raises(OSError, match="read-only"):
        arrow.filesystem.delete_file(arrow.files[0])
    with pytest.raises(FileNotFoundError):
        arrow.filesystem.open_input_file("data/other.parquet")
    (tmp_path / "set" / arrow.files[2]).unlink()
    with pytest.raises(ObjectMissingError):
        arrow.to_table()
    (tmp_path / "set" / arrow.files[2]).write_bytes(b"PAR1" * 1000)
    with pytest.raises((pa.ArrowInvalid, OSError)):
        arrow.to_table()
