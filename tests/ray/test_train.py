"""Training runs on a real Ray Train: what they leave, how they resume, and how their errors come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genworker import bundle as bundles
from genworker import cluster
from genworker.device import threads
from genworker.errors import CheckpointError, ClusterError, SourceError, TrainingError
from genworker.metrics.cards import Measured
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import checkpoint, loop, record, step, trainer
from genworker.training.hooks import Hooks
from genworker.training.spec import TrainSpec
from tests.processes import running
from tests.ray.runs import CHECKPOINT_EVERY, IMAGES, REPORT_EVERY, spec_for, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.training.hooks import Metrics
    from tests.servers import S3Server


@pytest.mark.slow
def test_a_run_leaves_bundle_checkpoints_metrics_and_spec(finished: str) -> None:
    """The URL holds what a resume, a reader and a person need, and nothing else."""
    store = open_store(finished)
    checkpoints = checkpoint.keys(store)
    assert len(checkpoints) == spec_for().training.keep_checkpoints
    expected = {record.SPEC_KEY, record.METRICS_KEY, record.ENVIRONMENT_KEY, *checkpoints}
    expected |= {record.BUNDLE_PREFIX + name for name in (bundles.BUNDLE_KEY, bundles.WEIGHTS_KEY, bundles.SCORER_KEY)}
    pictures = {
        f"{record.SAMPLES_PREFIX}images-{seen:012d}.png"
        for seen in range(CHECKPOINT_EVERY, IMAGES + 1, CHECKPOINT_EVERY)
    }
    assert {info.key for info in store.list()} == expected | pictures

    assert TrainSpec.parse(json.loads(store.get(record.SPEC_KEY)), origin="test").spec_id == spec_for().spec_id
    reports = record.read_metrics(store)
    assert [line["images_seen"] for line in reports] == list(range(REPORT_EVERY, IMAGES + 1, REPORT_EVERY))
    assert all(line["nonfinite_steps"] == 0 for line in reports)
    bundle = bundles.load(store, record.BUNDLE_PREFIX)
    assert bundle.info.lineage.images_seen == IMAGES
    assert bundle.info.image_schema.class_names[9] == "Ankle boot"
    images = bundle.generator()(torch.zeros(2, 8), torch.tensor([0, 9]))
    assert images.shape == (2, 1, 28, 28)
    assert torch.isfinite(images).all()


@pytest.mark.slow
def test_checkpoints_are_measured_beside_training_and_the_best_is_kept(ray_cluster: int, tmp_path: Path) -> None:
    """Evaluations lie in the run, the last checkpoint is among them, and best/ holds the bundle of the best one.

    With a price, the run tells at its end what its workers cost.
    """
    training = spec_for().training.model_dump() | {"holdout_share": 0.2, "callbacks": ["tensorboard"]}
    evaluation = {"num_samples": 64, "extractor_images": 600}
    resources = spec_for().resources.model_dump() | {"price_per_hour": 3.6}
    spec = spec_for(training=training, evaluation=evaluation, resources=resources)
    events: list[Any] = []
    trainer.train(spec, str(tmp_path), on_event=events.append)
    (cost,) = [event for event in events if event.startswith("cost of this start: ")]
    assert cost.facts["cost"] > 0
    store = open_store(str(tmp_path))
    evaluations = record.read_evaluations(store)
    assert evaluations[-1]["images_seen"] == IMAGES
    assert any(f"evaluation at image {IMAGES}: frechet" in event for event in events), events
    (best, *_) = record.best_evaluations(evaluations, "frechet")
    assert bundles.load(store, record.BEST_PREFIX).info.lineage.images_seen == best
    for prefix, images in ((record.BEST_PREFIX, best), (record.BUNDLE_PREFIX, IMAGES)):
        kept = bundles.load_info(store, prefix).lineage.evaluation
        assert kept == next(Measured.of(line) for line in evaluations if line["images_seen"] == images)
    events_of_run = EventAccumulator(str(tmp_path / "tensorboard"))
    events_of_run.Reload()
    told = [event.step for event in events_of_run.Scalars("evaluation/frechet")]
    assert told == sorted(set(told))
    assert told[-1] == IMAGES  # measured after the workers had ended


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the same run by one worker, in this process and without Ray."""
    url = str(tmp_path_factory.mktemp("alone"))
    train_alone(url)
    return url


def train_alone(url: str) -> None:
    """Train by one worker in this process, on one thread as workers of one processor do."""
    spec, cpu = spec_for(resources={"workers": 1}), torch.device("cpu")
    record.claim(spec, open_store(url))
    with threads(1):
        loop.train(spec, open_source(spec.data), open_store(url), rank=0, world_size=1, device=cpu, hooks=Hooks())


@pytest.mark.slow
def test_one_worker_trains_as_two_do(finished: str, alone: str) -> None:
    """One and two workers share batches, noise and initial weights: what differs is the order of summation."""
    start, one, two = weights_at_start(), weights_of(alone), weights_of(finished)
    assert start.keys() == one.keys() == two.keys()
    # Adam enlarges rounding with every step; other noise, another order of images or another start would give differences
    # as large as the movement.
    assert distance(one, two) < 0.05 * distance(one, start)


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The Euclidean distance between all weights."""
    return float(torch.cat([(one[name] - two[name]).reshape(-1) for name in one]).norm())


def weights_at_start() -> dict[str, torch.Tensor]:
    """The generator's weights before the first step."""
    spec = spec_for()
    start = step.Trainer(spec, open_source(spec.data), 0, 1, torch.device("cpu"))
    return {name: tensor.clone() for name, tensor in start.average.networks.state_dict().items()}


@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_same_weights(ray_cluster: int, finished: str, tmp_path: Path) -> None:
    """After kill -9 of the driver the next run goes on from the newest checkpoint and ends in the same bits."""
    out, spec_file = tmp_path / "run", tmp_path / "spec.yaml"
    spec_file.write_text(yaml.safe_dump(spec_for().model_dump(mode="json")), encoding="utf-8")
    with running(["genworker", "train", str(spec_file), "--out", str(out)], tmp_path) as program:
        program.wait_until(lambda: out.is_dir() and bool(checkpoint.keys(open_store(str(out)))))
        # Before the kill: its workers outlive it for a moment, in which a fast machine ends the whole run.
        before = checkpoint.images_of(checkpoint.keys(open_store(str(out)))[0])
        program.kill()
    assert 0 < before < IMAGES

    seen: list[Metrics] = []
    result = trainer.train(spec_for(), str(out), seen.append)
    assert (result.finished, result.images_seen) == (True, IMAGES)
    assert next(iter(seen), {}).get("images_seen", IMAGES) > before
    assert_same_run(str(out), finished)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint(ray_cluster: int, finished: str, tmp_path: Path) -> None:
    """KeyboardInterrupt makes the workers save where they are, comes out again, and the next run ends in the same bits."""

    def interrupt(metrics: Metrics) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(spec_for(), str(tmp_path), interrupt)
    assert checkpoint.keys(open_store(str(tmp_path)))
    trainer.train(spec_for(), str(tmp_path))
    assert_same_run(str(tmp_path), finished)


def assert_same_run(url: str, other: str) -> None:
    """Equal weights to the last bit, and reports at the same places."""
    one, two = (bundles.load_info(open_store(place), record.BUNDLE_PREFIX) for place in (url, other))
    assert one.digest == two.digest
    reports, expected = (record.read_metrics(open_store(place)) for place in (url, other))
    assert [line["images_seen"] for line in reports] == [line["images_seen"] for line in expected]
    assert reports[-1]["generator.loss"] == expected[-1]["generator.loss"]


@pytest.mark.slow
def test_an_error_in_a_worker_comes_out_with_its_type_and_message(ray_cluster: int, tmp_path: Path) -> None:
    """Too many corrupt images, found by a worker in mid-run: the driver raises the worker's SourceError."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            path = tmp_path / "data" / name / f"{number:02d}.png"
            Image.new("L", (28, 28), number * 10).save(path)
            if number >= 15:
                path.write_bytes(b"not an image")
    data = {
        "name": "image-folder",
        "url": str(tmp_path / "data"),
        "image_size": 28,
        "channels": 1,
        "max_corrupt": 2,
    }
    with pytest.raises(SourceError, match=r"images cannot be used, more than max_corrupt 2: .*1[5-9]\.png"):
        trainer.train(spec_for(data=data), str(tmp_path / "run"))


@pytest.mark.slow
def test_a_diverging_run_is_a_training_error(ray_cluster: int, tmp_path: Path) -> None:
    """Weights that become infinite end the run with what to change, not with a bundle of nonsense."""
    family = spec_for().family.model_dump() | {"lr": {"start": 1e30, "end": 1e30}}
    watchdog = {"max_nonfinite_steps": 3, "max_rollbacks": 1}
    events: list[str] = []
    with pytest.raises(TrainingError, match=r"diverged at image \d+ after 1 rollbacks(.|\n)*lower family\.lr"):
        trainer.train(spec_for(family=family, watchdog=watchdog), str(tmp_path), on_event=events.append)
    assert any("rollback 1 of 1 goes back to the start" in event for event in events)
    assert not (tmp_path / record.BUNDLE_PREFIX).exists()


def test_another_spec_is_refused(ray_cluster: int, tmp_path: Path) -> None:
    """A URL that holds another run is refused with the differences, before Ray Train starts."""
    store = open_store(str(tmp_path))
    record.claim(spec_for(), store)
    store.put(checkpoint.key_of(CHECKPOINT_EVERY), b"")
    with pytest.raises(CheckpointError, match=r"seed: 2 here, 1 there"):
        trainer.train(spec_for(seed=2), str(tmp_path))


def test_more_workers_than_the_cluster_holds(ray_cluster: int, tmp_path: Path) -> None:
    """A cluster that lacks the room is waited for, with a message, and after that time both numbers are named."""
    events: list[str] = []
    resources = {"workers": 9, "wait_seconds": 1.0}
    with pytest.raises(ClusterError, match=rf"9 workers .*1 CPU; .*has {ray_cluster} CPUs .*waited 1 s"):
        trainer.train(spec_for(resources=resources), str(tmp_path), on_event=events.append)
    assert len([event for event in events if "waiting for the cluster: 9 workers" in event]) == 1
    assert "gives up in 1 s" in events[0]


def test_workers_keep_to_labelled_nodes(ray_cluster: int, tmp_path: Path) -> None:
    """Nodes without the label count for nothing; with a label that the node has there is room as before."""
    (node,) = ray.nodes()
    there = {"ray.io/node-id": node["NodeID"]}
    cluster.await_workers(ray_cluster, cluster.actor_options(node_labels=there), wait_seconds=0)
    resources = {"workers": 1, "wait_seconds": 0.0, "node_labels": {"genworker-group": "training"}}
    with pytest.raises(ClusterError, match=r"on 0 nodes labelled genworker-group=training, enough for 0"):
        trainer.train(spec_for(resources=resources), str(tmp_path))


def test_a_run_in_s3(alone: str, moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """Checkpoints, metrics and bundle go to s3:// as they go to a folder, with the same weights."""
    point_at(moto)
    url = f"s3://{moto.new_bucket()}/runs/1"
    train_alone(url)
    assert {info.key for info in open_store(url).list()} == {info.key for info in open_store(alone).list()}
    assert_same_run(url, alone)
