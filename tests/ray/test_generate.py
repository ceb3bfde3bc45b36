"""Bulk jobs on a real Ray cluster: the same bytes however many actors there are and whatever happens to them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
import torch

import genworker
from genworker import bundle as bundles
from genworker.bulk import commit, failures
from genworker.bulk.job import JobResult, generate
from genworker.bulk.manifest import published
from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.bulk.pool import ShardPool
from genworker.bulk.progress import Progress
from genworker.bulk.request import GenerateSpec, make_plan
from genworker.bulk.shard import resample
from genworker.errors import (
    BundleError,
    ClusterError,
    DatasetError,
    DeterminismError,
    OtherMachineError,
    PlanError,
    UsageError,
)
from genworker.reading import verify
from genworker.sampling.calibration import Calibration
from genworker.sampling.engine import Engine
from genworker.stores import open_store
from tests.datasets import all_samples, published_digests, stored_shards
from tests.fakes.bundle import save_bundle
from tests.processes import titled

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Shards that end inside micro-batches of 128, and a last one that is short.
NUM_SAMPLES, PER_SHARD, NUM_SHARDS = 2_900, 150, 20


def request_for(bundle: str, out: object, **changes: object) -> GenerateSpec:
    """What most tests here ask for."""
    values = {"num_samples": NUM_SAMPLES, "samples_per_shard": PER_SHARD, "seed": 3, "actors": 2}
    return GenerateSpec.parse({"bundle": bundle, "out": str(out), **values, **changes}, origin="test")


@pytest.fixture(scope="module")
def finished(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the dataset as one undisturbed actor makes it; not to be changed."""
    out = str(tmp_path_factory.mktemp("finished") / "dataset")
    result = generate(request_for(tiny_bundle, out, actors=1))
    assert result.samples_made == NUM_SAMPLES
    assert result.making_seconds > 0
    return out


@pytest.fixture
def copied(finished: str, tmp_path: Path) -> Path:
    """A copy of the finished dataset, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_finished_dataset_has_no_faults(finished: str) -> None:
    """Every shard is in the manifest, verify finds nothing, and shards remade elsewhere have the same bytes."""
    assert len(stored_shards(finished)) == NUM_SHARDS
    assert verify(finished) == []
    store = open_store(finished)
    manifest = published(store)
    assert manifest is not None
    assert resample(store, manifest, 3, torch.device("cpu")) == []


@pytest.mark.slow
@pytest.mark.parametrize("actors", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_actors(
    tiny_bundle: str, finished: str, tmp_path: Path, actors: int
) -> None:
    """Two and three actors write the same shards, manifest and _SUCCESS, byte for byte, as one does."""
    result = generate(request_for(tiny_bundle, tmp_path / "out", actors=actors))
    assert result.samples_made == NUM_SAMPLES
    assert published_digests(str(tmp_path / "out")) == published_digests(finished)


@pytest.mark.slow
def test_bytes_do_not_depend_on_a_killed_actor(tiny_bundle: str, finished: str, tmp_path: Path) -> None:
    """An actor that is SIGKILLed in mid-job is replaced, the user is told, and the dataset is the same."""
    killed: list[int] = []
    events: list[str] = []

    def kill_one(progress: Progress) -> None:
        if progress.event:
            events.append(progress.event)
        if progress.samples_made and not killed:
            killed.append(titled("ray::ShardActor")[0])
            os.kill(killed[0], signal.SIGKILL)

    generate(request_for(tiny_bundle, tmp_path / "out"), kill_one)
    assert killed
    assert any("an actor died and is replaced" in event for event in events)
    assert published_digests(str(tmp_path / "out")) == published_digests(finished)


def test_urls_may_be_relative(tiny_bundle: str, finished: str, tmp_path: Path) -> None:
    """Relative URLs mean the driver's working directory, though actors have others."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with contextlib.chdir(tmp_path):
        generate(request_for("bundle", Path("out")))
    assert published_digests(str(tmp_path / "out")) == published_digests(finished)


def test_progress_adds_up(tiny_bundle: str, tmp_path: Path) -> None:
    """Progress begins at nothing and with a price, counts every shard once, and ends at the whole dataset."""
    seen: list[Progress] = []
    request = request_for(tiny_bundle, tmp_path / "out", num_samples=600, price_per_hour=3.6)
    result = generate(request, seen.append)
    (told, *_) = [progress for progress in seen if progress.event]
    assert told.event.startswith("estimate before the first shard, of generating and encoding alone: 600 samples in ")
    assert told.num_done == 0
    assert result.summary["forecast"]["after_shards"] == 0
    assert result.summary["forecast"]["cost"] > 0
    # In between it is told again that nothing new is there, and on a busy machine of a second attempt at a slow shard.
    assert [num_done for num_done, _ in itertools.groupby(progress.num_done for progress in seen)] == [0, 1, 2, 3, 4]
    assert (seen[-1].samples_done, seen[-1].samples_made) == (600, 600)
    assert seen[-1].bytes_done == result.manifest.num_bytes


@pytest.mark.parametrize("receipts", [True, False], ids=["with receipts", "without receipts"])
def test_resuming_makes_only_what_is_missing(tiny_bundle: str, finished: str, copied: Path, *, receipts: bool) -> None:
    """Three shards of an unpublished dataset are missing: just these are made, and the result is the same dataset."""
    for key in (SUCCESS_KEY, MANIFEST_KEY, *stored_shards(finished)[4:7]):
        (copied / key).unlink()
    if not receipts:
        shutil.rmtree(copied / RECEIPTS_PREFIX)
    before = {key: (copied / key).stat().st_mtime_ns for key in stored_shards(str(copied))}
    result = generate(request_for(tiny_bundle, copied))
    assert result.samples_made == 3 * PER_SHARD
    assert published_digests(str(copied)) == published_digests(finished)
    assert {key: (copied / key).stat().st_mtime_ns for key in before} == before


def test_resuming_when_only_the_manifest_is_missing(tiny_bundle: str, finished: str, copied: Path) -> None:
    """A driver that died just before publishing left nothing to make; the next one publishes."""
    (copied / SUCCESS_KEY).unlink()
    (copied / MANIFEST_KEY).unlink()
    assert generate(request_for(tiny_bundle, copied)).samples_made == 0
    assert published_digests(str(copied)) == published_digests(finished)
    # No actor is needed for it, so neither is room for one, in a cluster that may grow and in one that may not.
    for wait_timeout in (0.0, 300.0):
        (copied / SUCCESS_KEY).unlink()
        (copied / MANIFEST_KEY).unlink()
        assert (
            generate(request_for(tiny_bundle, copied, cpus_per_actor=64, wait_timeout=wait_timeout)).samples_made == 0
        )
        assert published_digests(str(copied)) == published_digests(finished)


def test_a_finished_dataset_is_left_as_it_is(tiny_bundle: str, copied: Path) -> None:
    """The same request again changes no file and makes no sample."""

    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}

    before = state()
    result = generate(request_for(tiny_bundle, copied))
    assert (result.samples_made, result.manifest.num_samples) == (0, NUM_SAMPLES)
    assert state() == before


def test_another_plan_is_refused(tiny_bundle: str, finished: str) -> None:
    """A URL that holds another dataset is refused with each difference, and nothing changes there."""
    before = published_digests(finished)
    with pytest.raises(PlanError) as caught:
        generate(request_for(tiny_bundle, finished, seed=4, samples_per_shard=200))
    message = str(caught.value)
    assert "seed: 4 here, 3 there" in message
    assert "samples_per_shard: 200 here, 150 there" in message
    assert "write to another URL" in message
    assert published_digests(finished) == before


def test_the_numerics_of_a_driver_that_came_first_hold(
    tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that finds the plan claimed by another with other numerics, after it measured its own, goes on with theirs."""
    spec, ask = request_for(tiny_bundle, tmp_path / "out", num_samples=300), ShardPool.ask

    def ask_too_slowly(pool: ShardPool, method: str, *args: object, **named: int) -> Calibration:
        found: Calibration = ask(pool, method, *args, **named)
        theirs = found.numerics.model_copy(update={"micro_batch": 64})
        commit.claim(open_store(spec.out), make_plan(spec, bundles.load_info(open_store(tiny_bundle)), theirs))
        return found

    monkeypatch.setattr(ShardPool, "ask", ask_too_slowly)
    assert generate(spec).manifest.plan.numerics.micro_batch == 64
    assert verify(spec.out) == []


def test_another_bundle_is_refused(finished: str, tmp_path: Path) -> None:
    """Samples of two models never mix under one URL."""
    other = save_bundle(str(tmp_path / "other"), seed=1)
    with pytest.raises(PlanError, match=r"bundle_digest: .* here, .* there"):
        generate(request_for(other, finished))


def test_more_actors_than_the_cluster_holds(tiny_bundle: str, tmp_path: Path, ray_cluster: int) -> None:
    """Asking for too many actors names both numbers, and leaves no plan behind."""
    with pytest.raises(ClusterError, match=rf"9 actors .*enough for {ray_cluster}"):
        generate(request_for(tiny_bundle, tmp_path / "out", actors=9, wait_timeout=0))
    with pytest.raises(
        ClusterError, match=r"2 actors .*each needs 1 CPU and 1 GPU; .* 1 GPUs on 1 nodes, enough for 1"
    ):
        generate(request_for(tiny_bundle, tmp_path / "out", use_gpu=True, wait_timeout=0))
    assert not (tmp_path / "out" / PLAN_KEY).exists()


def test_actors_keep_to_labelled_nodes(tiny_bundle: str, finished: str, tmp_path: Path) -> None:
    """A label that no node has is no room; one that a node has is where the actors go."""
    labels = {"genworker-group": "generation"}
    with pytest.raises(ClusterError, match="labelled genworker-group=generation, enough for 0"):
        generate(request_for(tiny_bundle, tmp_path / "out", node_labels=labels, wait_timeout=0))
    (node,) = ray.nodes()
    generate(request_for(tiny_bundle, tmp_path / "out", node_labels={"ray.io/node-id": node["NodeID"]}))
    assert published_digests(str(tmp_path / "out")) == published_digests(finished)


def test_a_missing_bundle_writes_nothing(tmp_path: Path) -> None:
    """A wrong bundle URL is found before a plan is written."""
    with pytest.raises(BundleError, match="there is no bundle"):
        generate(request_for(str(tmp_path / "nowhere"), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_memory_is_refused_as_output(tiny_bundle: str) -> None:
    """Actors are other processes and could not reach this one's memory."""
    with pytest.raises(UsageError, match=r"memory:// lives in one process.*use a folder or s3://"):
        generate(request_for(tiny_bundle, f"memory://{uuid.uuid4().hex}"))


def test_samples_are_the_engines(tiny_bundle: str, finished: str) -> None:
    """What readers get is pixel for pixel what the engine computes in one process without shards."""
    dataset = genworker.open(finished)
    engine = Engine(bundles.load(open_store(tiny_bundle)), dataset.plan, torch.device("cpu"))
    expected = list(engine.batches(0, NUM_SAMPLES))
    indices, pixels, labels = all_samples(finished)
    assert np.array_equal(indices, np.arange(NUM_SAMPLES))
    assert np.array_equal(pixels, np.concatenate([batch.pixels for batch in expected]))
    assert labels is not None
    assert np.array_equal(labels, np.concatenate([batch.labels for batch in expected if batch.labels is not None]))
    # Different latents give different pictures; an engine that ignored them would pass all of the above.
    assert len(np.unique(pixels, axis=0)) == NUM_SAMPLES


def test_unconditional_models_make_unlabelled_samples(tmp_path: Path) -> None:
    """A model without classes gives a dataset without labels."""
    bundle = save_bundle(str(tmp_path / "bundle"), num_classes=0)
    generate(request_for(bundle, tmp_path / "out", num_samples=300))
    indices, pixels, labels = all_samples(str(tmp_path / "out"))
    assert labels is None
    assert pixels.shape == (300, 28, 28, 1)
    assert np.array_equal(indices, np.arange(300))
    assert verify(str(tmp_path / "out")) == []


def interfere(action: Callable[[], None]) -> Callable[[Progress], None]:
    """Do ``action`` once, when what is stored was listed and before the first task."""
    todo = [action]
    return lambda _progress: todo.pop()() if todo else None


def test_other_bytes_under_a_shards_key_stop_the_job(
    tiny_bundle: str, copied: Path, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that appears with other content than the plan gives is reported as such, and nothing is published.

    The actors end before the failure is recorded: a shard that one of them put behind it would make it history.
    """
    close, record = ShardPool.close, failures.write
    steps = []

    def closing(pool: ShardPool) -> None:
        steps.append("close")
        close(pool)

    def recording(*args: Any) -> None:
        steps.append("record")
        record(*args)

    monkeypatch.setattr(ShardPool, "close", closing)
    monkeypatch.setattr(failures, "write", recording)
    key = stored_shards(finished)[5]
    for name in (SUCCESS_KEY, MANIFEST_KEY, key):
        (copied / name).unlink()
    with pytest.raises(DeterminismError, match="one plan must give one result"):
        generate(request_for(tiny_bundle, copied), interfere(lambda: write(copied / key, b"not a shard")))
    assert not (copied / MANIFEST_KEY).exists()
    assert steps[:2] == ["close", "record"]


def test_a_shard_that_another_driver_wrote_is_accepted(tiny_bundle: str, copied: Path, finished: str) -> None:
    """Two drivers of one plan do not disturb each other: equal bytes under the key are success."""
    key = stored_shards(finished)[5]
    for name in (SUCCESS_KEY, MANIFEST_KEY, key):
        (copied / name).unlink()
    result: JobResult = generate(
        request_for(tiny_bundle, copied), interfere(lambda: write(copied / key, (Path(finished) / key).read_bytes()))
    )
    assert result.samples_made == PER_SHARD
    assert published_digests(str(copied)) == published_digests(finished)


def test_a_foreign_object_among_the_shards_stops_the_job(tiny_bundle: str, copied: Path) -> None:
    """What lies under data/ and is no shard is named, not published around."""
    (copied / SUCCESS_KEY).unlink()
    write(copied / "data" / "notes.txt", b"mine")
    with pytest.raises(DatasetError, match=r"data/notes\.txt: is no shard"):
        generate(request_for(tiny_bundle, copied))


def test_a_foreign_object_stops_a_new_job_before_it_writes(tiny_bundle: str, tmp_path: Path) -> None:
    """Found before there is a plan, it leaves the URL as it was, free for any other request."""
    foreign = tmp_path / "out" / "data" / "notes.txt"
    foreign.parent.mkdir(parents=True)
    write(foreign, b"mine")
    with pytest.raises(DatasetError, match=r"data/notes\.txt: is there without a plan .*nothing was written"):
        generate(request_for(tiny_bundle, tmp_path / "out"))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [foreign]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to compute on")
def test_a_gpu_that_torch_does_not_find_is_told(tiny_bundle: str, tmp_path: Path) -> None:
    """Ray may count a GPU that torch cannot use; such nodes are left out, and where none is left the reason ends the job."""
    request = request_for(tiny_bundle, tmp_path / "out", actors=2, use_gpu=True, gpus_per_actor=0.5, wait_timeout=0)
    with pytest.raises(OtherMachineError, match=r"^use_gpu: torch .* finds no GPU on this machine"):
        generate(request)
    assert not (tmp_path / "out" / PLAN_KEY).exists()


def write(path: Path, data: bytes) -> None:
    """Write a file as another program would."""
    path.write_bytes(data)
