"""Datasets that nobody stores: the same samples as `generate` stores, through the same interface."""

from __future__ import annotations

import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import genworker
from genworker.bulk import commit
from genworker.bulk.plan import BUNDLE_PREFIX
from genworker.bulk.shard import ShardMaker
from genworker.bulk.virtual import open_virtual
from genworker.errors import BundleError, DeterminismError, UsageError
from genworker.reading.torch_stream import merge_states
from genworker.stores import open_store
from tests.fakes import models

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.bundle import Bundle
    from genworker.reading.samples import Samples

NUM = 40
ALL = {"columns": "label,latents,score", "samples_per_shard": 15}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A tiny conditional GAN with its discriminator."""
    return models.bundle_of()


@pytest.fixture
def url(tmp_path: Path, bundle: Bundle) -> str:
    """Where that bundle lies."""
    bundle.save(open_store(str(tmp_path / "bundle")))
    return str(tmp_path / "bundle")


def stored(bundle: Bundle, virtual: Samples) -> Samples:
    """The dataset that `generate` makes of the same plan."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, virtual.plan)
    commit.store_bundle(store, bundle)
    maker = ShardMaker(store, torch.device("cpu"))
    commit.publish(store, virtual.plan, {task.shard_index: maker.make(task, 0) for task in virtual.plan.tasks()})
    return genworker.open(store.url)


def bits(samples: Samples) -> list[tuple[Any, ...]]:
    return [
        (s.index, s.pixels.tobytes(), s.label, None if s.latents is None else s.latents.tobytes(), s.score)
        for s in samples
    ]


@pytest.mark.parametrize("request_", [{}, ALL, {"codec": "jpeg:60"}, {"labels": "1", "seed": 7, "columns": ""}])
def test_a_virtual_dataset_has_the_bits_of_the_stored_one(url: str, bundle: Bundle, request_: dict[str, Any]) -> None:
    """Iterated, by range and by index, bit for bit, lossy codecs included."""
    virtual = genworker.open(url, num_samples=NUM, **request_)
    real = stored(bundle, virtual)
    assert bits(virtual) == bits(real)
    assert virtual.schema == real.schema
    assert len(virtual) == NUM
    for first, stop in ((0, 1), (13, 17), (39, 40), (5, 5)):
        ours, theirs = list(virtual.read(first, stop)), list(real.read(first, stop))
        assert [i for b in ours for i in b.sample_index.tolist()] == list(range(first, stop))
        if ours:
            np.testing.assert_array_equal(
                np.concatenate([b.pixels for b in ours]), np.concatenate([b.pixels for b in theirs])
            )
    for index in (-1, 0, 20, 21, 39):
        np.testing.assert_array_equal(virtual[index].pixels, real[index].pixels)
        assert virtual[index].label == real[index].label
    with pytest.raises(IndexError, match="the dataset has 40"):
        virtual[NUM]


def test_random_access_costs_a_micro_batch_and_neighbours_nothing(url: str) -> None:
    """A dataset of a trillion samples opens at once, and any sample of it comes alone."""
    huge = genworker.open(url, num_samples=10**12, seed=3)
    last = huge[10**12 - 1]
    assert last.index == 10**12 - 1
    assert huge[-1] is not last
    np.testing.assert_array_equal(huge[-1].pixels, last.pixels)


def test_a_datasets_own_plan_needs_no_shards(url: str, bundle: Bundle) -> None:
    """A job that was begun and never finished can be read in full, from its plan and bundle."""
    plan = genworker.open(url, num_samples=NUM, **ALL).plan
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, plan)
    commit.store_bundle(store, bundle)
    own = genworker.open(store.url, virtual=True)
    assert own.plan == plan
    assert bits(own) == bits(genworker.open(url, plan))
    assert bits(own) == bits(genworker.open(url, plan=plan.model_dump(mode="json")))
    store.delete(BUNDLE_PREFIX + "bundle.json")
    with pytest.raises(BundleError, match="there is no bundle here"):
        genworker.open(store.url, virtual=True)


def test_what_cannot_be_evaluated_is_refused(url: str, bundle: Bundle) -> None:
    """Two plans at once, none, another bundle's, or another machine's are errors that say so."""
    plan = genworker.open(url, num_samples=NUM).plan
    with pytest.raises(UsageError, match="plan and seed: a plan says everything already"):
        open_virtual(url, plan=plan, seed=1)
    with pytest.raises(UsageError, match=r"there is no \.genworker/plan\.json; give num_samples"):
        genworker.open(url, virtual=True)
    with pytest.raises(UsageError, match=r"unknown key 'num_sample'; did you mean 'num_samples'"):
        open_virtual(url, num_sample=4)
    with pytest.raises(BundleError, match="the plan was made for bundle 0000"):
        genworker.open(url, plan=plan.model_copy(update={"bundle_digest": "0" * 64}))
    numerics = plan.numerics.model_copy(update={"device_class": "cuda/other"})
    with pytest.raises(DeterminismError, match="was made for cuda/other"):
        genworker.open(url, plan=plan.model_copy(update={"numerics": numerics}))


def test_torch_readers_share_a_virtual_dataset(url: str) -> None:
    """Two ranks of two workers each, in processes of their own, see every sample once, and a merged state resumes them."""
    virtual = genworker.open(url, num_samples=NUM, **ALL)
    seen, states = [], []
    for rank in range(2):
        stream = virtual.to_torch(rank=rank, world_size=2)
        loader = DataLoader(stream, batch_size=4, num_workers=2)
        for number, batch in enumerate(loader):
            stream.note_seen(batch["index"])
            seen += batch["index"].tolist()
            if number == 1:
                break
        states.append(stream.state_dict())
    # As it travels to a process that is started afresh.
    rest = pickle.loads(pickle.dumps(virtual)).to_torch()  # noqa: S301
    rest.load_state_dict(merge_states(states))
    rows = list(rest)
    assert sorted(seen + [row["index"] for row in rows]) == list(range(NUM))
    for row in rows:
        np.testing.assert_array_equal(row["pixels"].permute(1, 2, 0).numpy(), virtual[row["index"]].pixels)


def test_what_a_reader_does_to_a_sample_is_the_readers_alone(url: str) -> None:
    """A sample keeps neither the micro-batch that it was made in, nor the next reader from what it was."""
    virtual = genworker.open(url, num_samples=NUM, **ALL)
    before = bits(virtual)
    for index in range(NUM):
        sample = virtual[index]
        assert sample.latents is not None
        sample.pixels[:] = 0
        sample.latents[:] = 0.0
    again = [virtual[index] for index in range(NUM)]
    assert [(s.pixels.tobytes(), s.latents.tobytes()) for s in again if s.latents is not None] == [
        (pixels, latents) for _, pixels, _, latents, _ in before
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_plan_of_several_threads_is_not_read_behind_a_fork(url: str) -> None:
    """OpenMP would wait there for good; a process of its own can read it."""
    virtual = genworker.open(url, num_samples=NUM, cpus_per_actor=2)
    assert virtual.plan.numerics.threads == 2
    forked = DataLoader(virtual.to_torch(), num_workers=1, multiprocessing_context="fork", timeout=60)
    with pytest.raises(UsageError, match=r'2 threads, which a forked process cannot start; .*="spawn"'):
        list(forked)
    spawned = DataLoader(virtual.to_torch(), num_workers=1, multiprocessing_context="spawn", timeout=60)
    assert [int(batch["index"]) for batch in spawned] == list(range(NUM))


def test_a_gpu_is_not_used_behind_a_fork(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA says something of its own there, which no reader could use."""
    virtual = genworker.open(url, num_samples=NUM)
    monkeypatch.setattr(virtual, "_use_gpu", True)
    monkeypatch.setattr(virtual, "_process", -1)  # as in a fork
    with pytest.raises(UsageError, match=r'on a GPU, which a forked process cannot use; .*="spawn"'):
        next(iter(virtual))


@pytest.mark.parametrize("name", ["verify", "on_bad_shard", "out", "bundle"])
def test_what_has_no_meaning_without_storage_is_refused(url: str, name: str) -> None:
    """By its name, instead of being passed over."""
    with pytest.raises(UsageError, match=f"^{name}: .*; leave it out where nothing is stored$"):
        genworker.open(url, num_samples=NUM, **{name: "x"})


def test_threads_read_one_virtual_dataset(url: str) -> None:
    """An engine is for one thread at a time, which is not its readers' concern."""
    virtual = genworker.open(url, num_samples=400)
    expected = np.concatenate([batch.pixels for batch in virtual.batches()])

    def one(index: int) -> bool:
        return np.array_equal(virtual[index].pixels, expected[index])

    def whole(_number: int) -> bool:
        return np.array_equal(np.concatenate([batch.pixels for batch in virtual.batches()]), expected)

    with ThreadPoolExecutor(8) as threads:
        passes = threads.map(whole, range(2))
        assert all(threads.map(one, np.random.default_rng(0).integers(0, 400, 200).tolist()))
        assert all(passes)
