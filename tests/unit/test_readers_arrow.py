"""Published shards as pyarrow, pandas, Polars and DuckDB see them, read with these libraries themselves."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker.bulk.plan import DATA_PREFIX
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

NUM = 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of PNG images in a folder, control objects included."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM), num_receipt_copies=2)
    return tmp_path


def check(rows: list[dict[str, object]]) -> None:
    """Every sample once, with its pixels and its label."""
    rows = sorted(rows, key=lambda row: int(str(row["sample_index"])))
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM))
    assert expected.labels is not None
    assert [row["sample_index"] for row in rows] == list(range(NUM))
    assert [row["label"] for row in rows] == expected.labels.tolist()
    for row, pixels in zip(rows, expected.pixels, strict=True):
        image = row["image"]
        assert isinstance(image, dict)
        assert image["path"] == f"{row['sample_index']:012d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image["bytes"]))), pixels)


def test_pyarrow_dataset_over_the_data_folder_sees_every_sample_once(folder: Path) -> None:
    """A pyarrow dataset of the data folder has all rows, and finds one row by its index."""
    dataset = ds.dataset(folder / DATA_PREFIX, format="parquet")
    check(dataset.to_table().to_pylist())
    assert dataset.to_table(filter=ds.field("sample_index") == 31).column("sample_index").to_pylist() == [31]


def test_pyarrow_reads_the_folder_as_one_table(folder: Path) -> None:
    """`pyarrow.parquet.read_table` takes the data folder as it is."""
    check(pq.read_table(folder / DATA_PREFIX).to_pylist())


def test_pandas_sees_every_sample_once(folder: Path) -> None:
    """`pandas.read_parquet` of the data folder has all rows and columns."""
    check(pd.read_parquet(folder / DATA_PREFIX).to_dict("records"))


def test_polars_sees_every_sample_once(folder: Path) -> None:
    """A Polars scan of the shards has all rows, eagerly and with a filter."""
    frame = pl.scan_parquet(str(folder / DATA_PREFIX / "*.parquet"))
    check(frame.collect().to_dicts())
    assert frame.filter(pl.col("sample_index") >= 45).select("sample_index").collect().height == 5


def test_duckdb_sees_every_sample_once(folder: Path) -> None:
    """DuckDB's read_parquet over the shards has all rows, and can look into the image column."""
    with duckdb.connect() as connection:
        source = f"read_parquet('{folder / DATA_PREFIX}/*.parquet')"
        result = connection.execute(f"SELECT sample_index, image, label FROM {source}")  # noqa: S608  our own path
        names = [column[0] for column in result.description]
        check([dict(zip(names, row, strict=True)) for row in result.fetchall()])
        counted = connection.execute(f"SELECT label, count(*) FROM {source} GROUP BY label").fetchall()  # noqa: S608
        sizes = connection.execute(f"SELECT min(octet_length(image.bytes)) FROM {source}").fetchone()  # noqa: S608
    expected = fake.labels_of(fake.SCHEMA, np.arange(NUM))
    assert expected is not None
    assert sorted(counted) == list(enumerate(np.bincount(expected).tolist()))
    assert sizes is not None
    assert sizes[0] > 60


def test_raw_pixels_are_plain_binary_everywhere(tmp_path: Path) -> None:
    """Raw shards open in Polars, DuckDB and pandas as a binary column that numpy takes without decoding."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM, codec="raw"))
    expected = fake.pixels_of(fake.SCHEMA, np.arange(NUM))
    pattern = str(tmp_path / DATA_PREFIX / "*.parquet")
    with duckdb.connect() as connection:
        query = f"SELECT image FROM read_parquet('{pattern}') ORDER BY sample_index"  # noqa: S608  our own path
        from_duckdb = [row[0] for row in connection.execute(query).fetchall()]
    from_polars = pl.scan_parquet(pattern).sort("sample_index").collect()["image"].to_list()
    from_pandas = pd.read_parquet(tmp_path / DATA_PREFIX).sort_values("sample_index")["image"].tolist()
    for images in (from_duckdb, from_polars, from_pandas):
        pixels = np.frombuffer(b"".join(images), np.uint8).reshape(NUM, *fake.SCHEMA.pixel_shape)
        np.testing.assert_array_equal(pixels, expected)


def test_latents_and_scores_are_lists_and_numbers_everywhere(tmp_path: Path) -> None:
    """pyarrow, pandas, Polars and DuckDB see latents as lists of float32 and scores as float32, and can filter by score."""
    plan = fake.make_plan(num_samples=NUM, columns=("label", "latents", "score"))
    fake.publish(str(tmp_path), plan)
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM), plan.extras)
    pattern = str(tmp_path / DATA_PREFIX / "*.parquet")
    table = ds.dataset(tmp_path / DATA_PREFIX, format="parquet").to_table().sort_by("sample_index")
    frame = pl.scan_parquet(pattern).sort("sample_index").collect()
    pandas = pd.read_parquet(tmp_path / DATA_PREFIX).sort_values("sample_index")
    with duckdb.connect() as connection:
        query = f"SELECT latents, score FROM read_parquet('{pattern}') ORDER BY sample_index"  # noqa: S608  our own path
        rows = connection.execute(query).fetchall()
        best = connection.execute(query.replace("ORDER BY", "WHERE score > -2 ORDER BY")).fetchall()
    for latents, scores in (
        (table["latents"].to_pylist(), table["score"].to_pylist()),
        (frame["latents"].to_list(), frame["score"].to_list()),
        (pandas["latents"].tolist(), pandas["score"].tolist()),
        ([row[0] for row in rows], [row[1] for row in rows]),
    ):
        np.testing.assert_array_equal(np.array(latents, np.float32), expected.latents)
        np.testing.assert_array_equal(np.array(scores, np.float32), expected.scores)
    assert len(best) == 6
