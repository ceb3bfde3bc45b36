"""Published Parquet datasets as Ray Data sees them, through `Dataset.to_arrow`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import genworker
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_data_reads_the_files_of_the_manifest(tmp_path: Path, ray_cluster: int) -> None:
    """`ray.data.read_parquet` of the files and the file system of to_arrow() has every sample, and no stranger's."""
    import ray.data

    fake.publish(str(tmp_path), fake.make_plan(num_samples=50))
    (tmp_path / "data" / "train-00004-of-00004.parquet").write_bytes(b"a stranger")
    arrow = genworker.open(str(tmp_path)).to_arrow()
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(arrow.files, filesystem=arrow.filesystem, columns=["sample_index", "label"]).take_all()
    expected = fake.labels_of(fake.SCHEMA, np.arange(50))
    assert expected is not None
    assert {row["sample_index"]: row["label"] for row in rows} == dict(enumerate(expected.tolist()))
