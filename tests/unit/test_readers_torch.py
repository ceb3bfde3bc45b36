"""Datasets as torch sees them: every sample once over ranks and workers, and states that resume any split."""

from __future__ import annotations

import json
import pickle
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import genworker
from genworker.errors import DatasetError, UsageError
from genworker.reading import spans
from genworker.reading.torch_stream import TorchStream, merge_states
from genworker.schema import ImageSchema
from genworker.stores import open_store
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.reading import Dataset

NUM = 50
# Two workers are part of what is tested, on machines with one core too.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Fifty samples in four shards, in this process's memory."""
    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, fake.make_plan(num_samples=NUM))
    return genworker.open(url)


@pytest.fixture
def on_disk(tmp_path: Path) -> Dataset:
    """Fifty samples in four shards, where other processes can read them."""
    fake.publish(str(tmp_path), fake.make_plan(num_samples=NUM))
    return genworker.open(str(tmp_path))


def take(stream: TorchStream, limit: int | None = None) -> list[int]:
    """The indices of the first ``limit`` samples of a pass (all by default)."""
    indices: list[int] = []
    iterator = iter(stream)
    while limit is None or len(indices) < limit:
        sample = next(iterator, None)
        if sample is None:
            break
        indices.append(sample["index"])
    return indices


ranges = st.lists(st.integers(0, 200), max_size=8, unique=True).map(
    lambda ends: list(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)


@given(pairs=ranges, num_parts=st.integers(1, 9), cut=st.tuples(st.integers(0, 200), st.integers(0, 200)))
def test_ranges_are_sets_of_indices(pairs: spans.Spans, num_parts: int, cut: tuple[int, int]) -> None:
    """Shares are equal to within one and cover each index once, and cutting, joining and counting are those of sets."""
    indices = [index for first, stop in pairs for index in range(first, stop)]
    shares = [spans.share(pairs, part, num_parts) for part in range(num_parts)]
    assert [index for part in shares for first, stop in part for index in range(first, stop)] == indices
    sizes = [spans.count(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1
    assert spans.union(pair for part in reversed(shares) for pair in part) == spans.union(pairs)
    first, stop = sorted(cut)
    kept = [index for a, b in spans.without(pairs, first, stop) for index in range(a, b)]
    assert kept == [index for index in indices if not first <= index < stop]
    assert all(spans.contains(pairs, index) == (index in set(indices)) for index in range(201))
    with pytest.raises(ValueError, match="sample 3 is in two ranges"):
        spans.union([(0, 5), (3, 4)])


def test_samples_are_tensors_of_the_right_kind(dataset: Dataset) -> None:
    """A sample has its index, uint8 pixels [C, H, W] and an integer label; unlabelled data has no label."""
    expected = fake.samples_of(fake.SCHEMA, np.arange(NUM))
    assert expected.labels is not None
    for sample in dataset.to_torch():
        index = sample["index"]
        assert sample["pixels"].dtype == torch.uint8
        assert sample["pixels"].shape == fake.SCHEMA.image_shape
        np.testing.assert_array_equal(sample["pixels"].permute(1, 2, 0).numpy(), expected.pixels[index])
        assert sample["label"] == expected.labels[index]
    url = f"memory://{uuid.uuid4().hex}"
    fake.publish(url, fake.make_plan(schema=ImageSchema(channels=1, height=4, width=4)))
    assert set(next(iter(genworker.open(url).to_torch()))) == {"index", "pixels"}


@settings(deadline=None, max_examples=40)
@given(splits=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 20)), min_size=1, max_size=4))
def test_every_sample_comes_once_however_often_the_job_is_split_anew(
    dataset: Dataset, splits: list[tuple[int, int]]
) -> None:
    """Readers stop after any number of samples and go on as any other number of readers: nothing is lost or repeated."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for num_readers, limit in splits:
        streams = [dataset.to_torch(rank=rank, world_size=num_readers) for rank in range(num_readers)]
        for rank, stream in enumerate(streams):
            if state is not None:
                stream.load_state_dict(state)
            # Readers need not be in step.
            seen += take(stream, limit + rank % 3)
        state = json.loads(json.dumps(merge_states([stream.state_dict() for stream in streams])))
    last = dataset.to_torch()
    assert state is not None
    last.load_state_dict(state)
    seen += take(last)
    assert sorted(seen) == list(range(NUM))
    assert take(last) == list(range(NUM))  # the pass after that is a whole one


@pytest.mark.parametrize("limit", [0, 1, 12, 13, 40])
def test_a_reader_goes_on_from_its_own_state(dataset: Dataset, limit: int) -> None:
    """Without merging, the same split resumes each reader where it was, before the first sample and after the last too."""
    for rank in range(3):
        stream = dataset.to_torch(rank=rank, world_size=3)
        before = take(stream, limit)
        again = dataset.to_torch(rank=rank, world_size=3)
        again.load_state_dict(stream.state_dict())
        assert again.state_dict() == stream.state_dict()
        assert before + take(again) == take(dataset.to_torch(rank=rank, world_size=3))


def test_states_that_would_lose_samples_are_refused(dataset: Dataset) -> None:
    """A state of one reader of several, an incomplete set, states of different passes and of other data are UsageErrors."""
    halves = [dataset.to_torch(rank=rank, world_size=2) for rank in range(2)]
    one = dataset.to_torch()
    one.load_state_dict(halves[1].state_dict())
    with pytest.raises(UsageError, match=r"is of reader 1 of 2, this is reader 0 of 1: .* merge_states"):
        take(one)
    with pytest.raises(UsageError, match="give the states of all readers"):
        merge_states([halves[1].state_dict()])
    mixed = halves[1].state_dict() | {"left": [[0, 3]]}
    with pytest.raises(UsageError, match="not of one pass: sample 0 is in two ranges"):
        merge_states([halves[0].state_dict(), mixed])
    with pytest.raises(UsageError, match="the state is of plan 00"):
        one.load_state_dict(halves[0].state_dict() | {"plan_id": "00"})
    with pytest.raises(UsageError, match="rank 2: it must be in"):
        dataset.to_torch(rank=2, world_size=2)


@pytest.mark.parametrize("world_size", [1, 2])
def test_loader_with_workers_gives_every_sample_once_and_resumes(on_disk: Dataset, world_size: int) -> None:
    """A DataLoader with two workers per rank covers everything, twice over; its state resumes under other numbers."""
    streams = [on_disk.to_torch(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(2):
        seen: list[int] = []
        for stream in streams:
            for batch in DataLoader(stream, batch_size=4, num_workers=2):
                stream.note_seen(batch["index"])
                seen += batch["index"].tolist()
            assert stream.state_dict()["left"] == []
        assert sorted(seen) == list(range(NUM))
    seen = []
    for stream in streams:
        for number, batch in enumerate(DataLoader(stream, batch_size=4, num_workers=2)):
            stream.note_seen(batch["index"])
            seen += batch["index"].tolist()
            if number == 2:
                break
    # The same rank with another number of workers, and everything in one process.
    states = [stream.state_dict() for stream in streams]
    for rank, state in enumerate(states):
        again = on_disk.to_torch(rank=rank, world_size=world_size)
        again.load_state_dict(state)
        rest = [index for batch in DataLoader(again, batch_size=4, num_workers=3) for index in batch["index"].tolist()]
        assert sorted(rest) == [index for first, stop in state["left"] for index in range(first, stop)]
    last = on_disk.to_torch()
    last.load_state_dict(merge_states(states))
    assert sorted(seen + take(last)) == list(range(NUM))


def test_noting_is_exact_and_knows_its_rank(on_disk: Dataset) -> None:
    """An index of another rank is a UsageError, and a dropped tail does not confuse the pass that follows."""
    stream = on_disk.to_torch(rank=0, world_size=2)
    with pytest.raises(UsageError, match="sample 40 is not of rank 0 of 2"):
        stream.note_seen([40])
    for _ in range(2):
        for batch in DataLoader(stream, batch_size=4, num_workers=2, drop_last=True):
            stream.note_seen(batch["index"])
        assert spans.count([(a, b) for a, b in stream.state_dict()["left"]]) == 1
    single = on_disk.to_torch()
    for batch in DataLoader(single, batch_size=8):
        single.note_seen(batch["index"])
    assert single.state_dict()["left"] == []


def test_a_bad_shard_stops_the_stream_or_is_skipped_and_done_with(on_disk: Dataset) -> None:
    """By default a damaged shard raises in the loop; skipped, all other samples come, and the state is complete."""
    store = open_store(on_disk.url)
    store.put(on_disk.plan.shard_key(1), b"damaged", overwrite=True)
    with pytest.raises(DatasetError, match="train-00001-of-00004"):
        take(genworker.open(on_disk.url).to_torch())
    with pytest.raises(DatasetError, match="train-00001-of-00004"):
        list(DataLoader(genworker.open(on_disk.url).to_torch(), num_workers=2))
    stream = genworker.open(on_disk.url, on_bad_shard="skip").to_torch()
    assert take(stream) == [*range(15), *range(30, NUM)]
    assert [fault.key for fault in stream.dataset.skipped] == [on_disk.plan.shard_key(1)]
    assert stream.state_dict()["left"] == []


@pytest.mark.parametrize(("method", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_shards_that_workers_skip_are_told_where_the_loader_is(on_disk: Dataset, method: str, num_workers: int) -> None:
    """What DataLoader workers leave out is in `Dataset.skipped` of the main process, each shard once, over two passes."""
    store = open_store(on_disk.url)
    bad = [on_disk.plan.shard_key(index) for index in (1, 3)]  # workers meet in shard 1
    for key in bad:
        store.put(key, b"damaged", overwrite=True)
    # Pickled, as it comes to a process that other machinery started.
    dataset = pickle.loads(pickle.dumps(genworker.open(on_disk.url, on_bad_shard="skip").to_torch().dataset))  # noqa: S301
    loader = DataLoader(
        dataset.to_torch(), num_workers=num_workers, multiprocessing_context=method, persistent_workers=True
    )
    assert dataset.skipped == []
    for _ in range(2):
        seen = [index for batch in loader for index in batch["index"].tolist()]
        assert sorted(seen) == [*range(15), *range(30, 45)]
        assert [fault.key for fault in dataset.skipped] == bad
    assert "left out by a DataLoader's worker" in dataset.skipped[0].problem
    assert [sample.index for sample in dataset] == [*range(15), *range(30, 45)]
    assert [fault.key for fault in dataset.skipped] == bad
    assert dataset.skipped[0].problem.startswith("has SHA-256")


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        [],
        {"plan_id": "x"},
        {"plan_id": "x", "reader": [0, 1], "left": 3},
        {"plan_id": "x", "reader": [0, 1], "left": [[0, 1, 2]]},
        {"plan_id": "x", "reader": [0, 1], "left": [["0", "1"]]},
        {"plan_id": "x", "reader": None, "left": []},
    ],
)
def test_what_is_no_state_is_refused(dataset: Dataset, state: Any) -> None:
    """When it is loaded, not when samples are asked for."""
    with pytest.raises(UsageError, match="give what state_dict or merge_states returned"):
        dataset.to_torch().load_state_dict(state)


@pytest.mark.parametrize("left", [[[0, 5], [0, 5]], [[0, 5], [4, 6]]])
def test_a_state_with_samples_twice_is_refused(dataset: Dataset, left: list[list[int]]) -> None:
    """It would give them twice."""
    stream = dataset.to_torch()
    with pytest.raises(UsageError, match=r"sample \d is in two ranges"):
        stream.load_state_dict(stream.state_dict() | {"left": left})


@pytest.mark.parametrize("left", [[[0, NUM + 1]], [[-1, 3]], [[5, 3]]])
def test_a_state_of_samples_that_are_not_there_is_refused(dataset: Dataset, left: list[list[int]]) -> None:
    stream = dataset.to_torch()
    with pytest.raises(UsageError, match=f"the dataset has {NUM}"):
        stream.load_state_dict(stream.state_dict() | {"left": left})


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdatas_loader_keeps_and_resumes_the_state_by_itself(on_disk: Dataset, num_workers: int) -> None:
    """StatefulDataLoader asks the workers; nothing has to be noted."""

    def loader() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(on_disk.to_torch(), batch_size=4, num_workers=num_workers)

    first = loader()
    batches = iter(first)
    seen = [index for _ in range(5) for index in next(batches)["index"].tolist()]
    second = loader()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())) if num_workers == 0 else first.state_dict())
    seen += [index for batch in second for index in batch["index"].tolist()]
    assert sorted(seen) == list(range(NUM))
    assert sorted(index for batch in second for index in batch["index"].tolist()) == list(range(NUM))


@pytest.mark.parametrize(
    "broken", [{}, {"plan_id": "x"}, {"plan_id": "x", "reader": [0, 1]}, {"plan_id": "x", "reader": [0], "left": []}]
)
def test_what_is_no_state_cannot_be_merged(broken: dict[str, Any]) -> None:
    """One that some reader never wrote is named, instead of a traceback."""
    with pytest.raises(UsageError, match="give what state_dict returned"):
        merge_states([broken])
