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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("format", ["webdataset", "files"])
def test_to_ray_gives_every_sample_once_in_any_format(tmp_path: Path, ray_cluster: int, format: str) -> None:
    """Rows hold decoded pixels and all columns; a damaged shard fails the read, or is passed over where that was asked."""
    import ray.data
    from ray.exceptions import RayTaskError

    plan = fake.make_plan(num_samples=50, format=format, columns=("label", "latents", "score"))
    fake.publish(str(tmp_path), plan)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = genworker.open(str(tmp_path)).to_ray(override_num_blocks=3)
    assert rows.count() == 50
    found = {row["sample_index"]: row for row in rows.take_all()}
    expected = fake.samples_of(fake.SCHEMA, np.arange(50), plan.extras)
    assert sorted(found) == list(range(50))
    for index, row in found.items():
        np.testing.assert_array_equal(row["pixels"], expected.pixels[index])
        assert row["label"] == expected.labels[index]
        np.testing.assert_array_equal(np.asarray(row["latents"]), expected.latents[index])
        assert row["score"] == expected.scores[index]
    (tmp_path / plan.shard_key(1)).write_bytes(b"damaged")
    with pytest.raises(RayTaskError, match="train-00001-of-00004"):
        genworker.open(str(tmp_path)).to_ray().take_all()
    skipping = genworker.open(str(tmp_path), on_bad_shard="skip").to_ray(override_num_blocks=4)
    kept = skipping.take_all()
    assert skipping.count() == len(kept)
    assert sorted(row["sample_index"] for row in kept) == [*range(15), *range(30, 50)]
