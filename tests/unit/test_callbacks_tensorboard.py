"""TensorBoard event files, read back by TensorBoard itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from genworker.stores import open_store
from genworker.training.callbacks import tensorboard
from genworker.training.callbacks.tensorboard import PREFIX, TensorBoard
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.stores.base import Store
    from tests.servers import S3Server

SPEC = models.train_spec()


def read(store: Store, folder: Path) -> Any:
    """What TensorBoard knows of a run."""
    folder.mkdir()
    for info in store.list(PREFIX):
        (folder / info.key.removeprefix(PREFIX)).write_bytes(store.get(info.key))
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    return events


def points(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, point_at: Callable[[S3Server], None]) -> Store:
    """A run's store in a folder, and on S3."""
    if request.param == "folder":
        return open_store(str(tmp_path / "run"))
    server = request.getfixturevalue("moto")
    point_at(server)
    return open_store(f"s3://{server.new_bucket()}/runs/clothes")


def test_tensorboard_reads_what_was_told(store: Store, tmp_path: Path) -> None:
    """Numbers, numbers that are not finite, lists, pictures, evaluations and alarms are there, by images seen."""
    callback = TensorBoard(store, SPEC, 0)
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    callback.on_report({"images_seen": 8, "elbo.kl": 2.5, "images_per_second": 10.0, "elbo.kl_per_latent": [0.5, 2.0]})
    callback.on_report({"images_seen": 16, "elbo.kl": None, "images_per_second": 12.0})
    callback.on_picture(16, pixels)
    callback.on_picture(24, pixels[:, :, :1])
    callback.on_evaluation(16, {"frechet": 31.0})
    callback.on_alarm(16, "elbo.kl is odd")
    callback.close()

    events = read(store, tmp_path / "logs")
    assert points(events, "run/images_per_second") == [(8, 10.0), (16, 12.0)]
    assert points(events, "evaluation/frechet") == [(16, 31.0)]
    (first, second) = events.Scalars("elbo/kl")
    assert (first.step, first.value, second.step) == (8, 2.5, 16)
    assert math.isnan(second.value)
    (histogram,) = events.Histograms("elbo/kl_per_latent")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max) == (8, 2, 0.5, 2.0)
    colour, grey = events.Images("samples")
    assert (colour.step, colour.width, colour.height, grey.step) == (16, 7, 5, 24)
    assert colour.encoded_image_string.startswith(b"\x89PNG")
    (alarm,) = events.Tensors("alarms/text_summary")
    assert make_ndarray(alarm.tensor_proto).tolist() == [b"elbo.kl is odd"]
    (spec,) = events.Tensors("spec/text_summary")
    assert b"batch_size: 8" in make_ndarray(spec.tensor_proto)[0]


def test_a_flush_stores_what_was_told_so_far(tmp_path: Path) -> None:
    """A run that is killed after a flush leaves its points."""
    store = open_store(str(tmp_path / "run"))
    callback = TensorBoard(store, SPEC, 0)
    callback.on_report({"images_seen": 8, "elbo.kl": 1.0})
    callback.flush()
    callback.on_report({"images_seen": 16, "elbo.kl": 2.0})
    assert points(read(store, tmp_path / "logs"), "elbo/kl") == [(8, 1.0)]
    callback.close()
    assert points(read(store, tmp_path / "later"), "elbo/kl") == [(8, 1.0), (16, 2.0)]


def test_a_resumed_run_shows_no_point_twice(tmp_path: Path) -> None:
    """Points beyond the checkpoint that a run goes on from are those of the run that went on."""
    store = open_store(str(tmp_path / "run"))
    killed = TensorBoard(store, SPEC, 0)
    for step in (8, 16, 24):
        killed.on_report({"images_seen": step, "elbo.kl": float(step)})
        killed.on_picture(step, np.zeros((4, 4, 1), np.uint8))
    killed.flush()
    resumed = TensorBoard(store, SPEC, 16)
    for step in (24, 32):
        resumed.on_report({"images_seen": step, "elbo.kl": float(-step)})
    resumed.close()
    killed.close()
    events = read(store, tmp_path / "logs")
    assert points(events, "elbo/kl") == [(8, 8.0), (16, 16.0), (24, -24.0), (32, -32.0)]
    assert [image.step for image in events.Images("samples")] == [8, 16]


def test_a_rollback_takes_its_points_back(tmp_path: Path) -> None:
    """A run that goes back to an earlier checkpoint goes on from there, in curves and in pictures."""
    store = open_store(str(tmp_path / "run"))
    callback = TensorBoard(store, SPEC, 0)
    black, white = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)
    for step, value in ((8, 1.0), (16, 2.0), (24, 99.0)):
        callback.on_report({"images_seen": step, "elbo.kl": value})
        callback.on_picture(step, black)
    callback.on_evaluation(24, {"frechet": 9.0})
    callback.on_picture(8, black)  # the loop draws where it went back to
    for step, value in ((16, 3.0), (24, 4.0)):
        callback.on_report({"images_seen": step, "elbo.kl": value})
        callback.on_picture(step, white)
    callback.on_evaluation(16, {"frechet": 5.0})  # of an earlier step, as it comes later
    callback.close()
    events = read(store, tmp_path / "logs")
    assert points(events, "elbo/kl") == [(8, 1.0), (16, 3.0), (24, 4.0)]
    pictures = events.Images("samples")
    assert [image.step for image in pictures] == [8, 16, 24]
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string == pictures[2].encoded_image_string
    assert points(events, "evaluation/frechet") == [(16, 5.0)]


def test_a_large_file_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flush puts stays small however long the run is, and nothing is lost between files."""
    monkeypatch.setattr(tensorboard, "_MAX_FILE_BYTES", 2_000)
    store = open_store(str(tmp_path / "run"))
    callback = TensorBoard(store, SPEC, 0)
    for step in range(1, 101):
        callback.on_report({"images_seen": step, "elbo.kl": float(step)})
        callback.flush()
    callback.close()
    sizes = [info.size for info in store.list(PREFIX)]
    assert len(sizes) > 3
    assert max(sizes[1:]) < 2_200  # the first holds the spec besides
    assert points(read(store, tmp_path / "logs"), "elbo/kl") == [(step, float(step)) for step in range(1, 101)]
