"""The loader's order is a function of the seed, and no number of workers, restart or thread changes what is drawn."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.errors import SourceError, UsageError
from genworker.schema import ImageSchema, Int64Array, SampleBatch
from genworker.sources.base import Blocks, SourceConfig
from genworker.training.loader import Loader, images_of, rank_slice
from genworker.training.order import held_out_indices, permutation

numbers = st.integers(0, 2**40)


class CountingSource:
    """A source whose pixels and labels tell the index; it fails at one index if asked to."""

    Config: ClassVar[type[SourceConfig]] = SourceConfig

    def __init__(
        self, length: int, *, fail_at: int | None = None, labelled: bool = True, blocks: Blocks | None = None
    ) -> None:
        self.blocks = blocks
        self.announced: list[int] = []
        self.schema = ImageSchema(channels=2, height=3, width=4, num_classes=256 if labelled else 0)
        self.corrupt: list[str] = []
        self.reads = 0
        self._length, self._fail_at, self._labelled = length, fail_at, labelled

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Int64Array) -> SampleBatch:
        self.reads += 1
        if self._fail_at in indices.tolist():
            raise SourceError(f"image {self._fail_at} is gone")
        pixels = np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 3, 4, 2)).copy()
        return SampleBatch(sample_index=indices, pixels=pixels, labels=indices.copy() if self._labelled else None)

    def prefetch(self, indices: Int64Array) -> None:
        self.announced += indices.tolist()

    def digest(self) -> str:
        return "0" * 64


IN_BLOCKS = {"length": 200, "blocks": Blocks(np.arange(5, 201, 5), 4)}


def stream(count: int, **settings: Any) -> list[tuple[int, int]]:
    """The first ``count`` batches as (draw, image index) pairs in order."""
    source = CountingSource(settings.pop("length", 20), blocks=settings.pop("blocks", None))
    with Loader(source, **settings) as loader:
        batches = list(itertools.islice(loader, count))
    pairs: list[tuple[int, int]] = []
    for batch in batches:
        assert batch.labels is not None
        pairs += zip(batch.draws.tolist(), batch.labels.tolist(), strict=True)
    return pairs


@given(batch_size=st.integers(1, 500), world_size=st.integers(1, 64))
def test_the_slices_of_all_ranks_make_up_the_batch(batch_size: int, world_size: int) -> None:
    """The ranks' slices, one after the other, are the global batch in order, and differ in length by at most one."""
    slices = [range(batch_size)[rank_slice(batch_size, rank, world_size)] for rank in range(world_size)]
    assert list(itertools.chain(*slices)) == list(range(batch_size))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@given(
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 20),
    seed=numbers,
    start=st.integers(0, 100),
    prefetch=st.integers(0, 3),
    data=st.sampled_from([{"length": 20}, IN_BLOCKS]),
)
@settings(deadline=None)
def test_any_number_of_workers_draws_the_same(
    *, batch_size: int, world_size: int, seed: int, start: int, prefetch: int, data: dict[str, Any]
) -> None:
    """The batches of all ranks together are the batches of one rank, in order; images in blocks are no exception."""
    world_size = min(world_size, batch_size)
    settings = {"batch_size": batch_size, "seed": seed, "start": start, "prefetch": prefetch, **data}
    ranks = [stream(3, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    assert sorted(itertools.chain(*ranks)) == stream(3, **settings)


@given(
    batch_size=st.integers(1, 20),
    seed=numbers,
    start=st.integers(0, 60),
    data=st.sampled_from([{"length": 20}, {"length": 45, "blocks": Blocks(np.arange(3, 46, 3), 4)}]),
)
@settings(deadline=None)
def test_a_restart_continues_the_stream(batch_size: int, seed: int, start: int, data: dict[str, Any]) -> None:
    """A loader that starts at any image, inside a batch or an epoch, draws what the first run drew from there on."""
    whole = stream(100 // batch_size + 1, batch_size=batch_size, seed=seed, **data)
    resumed = stream(2, batch_size=batch_size, seed=seed, start=start, **data)
    assert resumed == whole[start : start + 2 * batch_size]
    assert [draw for draw, _ in resumed] == list(range(start, start + 2 * batch_size))


def test_the_cursor_counts_what_was_handed_out() -> None:
    """images_seen follows the consumer and not the thread that reads ahead, so a checkpoint loses no image."""
    with Loader(CountingSource(20), batch_size=6, seed=0, rank=1, world_size=4, start=5, prefetch=3) as loader:
        assert loader.images_seen == 5
        assert [next(loader).images_seen for _ in range(3)] == [11, 17, 23]
        assert loader.images_seen == 23


def test_images_lie_between_minus_one_and_one() -> None:
    """Pixel 0 is -1, pixel 255 is 1, channels come first, and the tensor is float32."""
    pixels = np.zeros((1, 2, 3, 4), np.uint8)
    pixels[0, 1, 2, 3] = 255
    pixels[0, 0, 0, 0] = 51
    images = images_of(pixels)
    assert images.dtype == torch.float32
    assert images.shape == (1, 4, 2, 3)
    assert images[0, 3, 1, 2] == 1.0
    assert images[0, 0, 0, 0] == np.float32(51) / np.float32(127.5) - np.float32(1)
    assert images.min() == -1.0


def test_unlabelled_data_has_no_labels() -> None:
    """A source without labels gives batches without labels, not zeros."""
    with Loader(CountingSource(4, labelled=False), batch_size=2, seed=0) as loader:
        assert next(loader).labels is None


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_failure_reaches_the_consumer_after_the_batches_before_it(prefetch: int) -> None:
    """What the source raises in the thread is raised to the consumer at its place in the stream, and again if asked."""
    fail_at = int(permutation(10, 3, 0)[7])
    with Loader(CountingSource(10, fail_at=fail_at), batch_size=2, seed=3, prefetch=prefetch) as loader:
        assert [next(loader).images_seen for _ in range(3)] == [2, 4, 6]
        for _ in range(2):
            with pytest.raises(SourceError, match=f"image {fail_at} is gone"):
                next(loader)


def test_close_ends_the_thread_and_the_stream() -> None:
    """After close no thread is left and iteration ends, also when the queue was full and close is called twice."""
    before = threading.active_count()
    source = CountingSource(10)
    loader = Loader(source, batch_size=2, seed=0, prefetch=2)
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_close_wakes_a_waiting_consumer() -> None:
    """A consumer that waits for a slow source in another thread is let go when the loader is closed."""

    class Slow(CountingSource):
        def read(self, indices: Int64Array) -> SampleBatch:
            time.sleep(0.2)
            return super().read(indices)

    loader = Loader(Slow(10), batch_size=2, seed=0)
    seen: list[int] = []
    consumer = threading.Thread(target=lambda: seen.extend(batch.images_seen for batch in loader))
    consumer.start()
    loader.close()
    consumer.join(timeout=10)
    assert not consumer.is_alive()


def test_the_thread_reads_no_further_ahead_than_asked() -> None:
    """Memory is bounded: two batches wait, a third is in the thread's hand, and no more are read."""
    source = CountingSource(10)
    with Loader(source, batch_size=2, seed=0, prefetch=2) as loader:
        next(loader)
        time.sleep(0.1)
        assert source.reads <= 4


@pytest.mark.parametrize("rank", [0, 1])
def test_images_are_announced_before_they_are_read(rank: int) -> None:
    """The source hears once of each image that this rank will draw, before it is read and not too long before."""

    class Listening(CountingSource):
        def read(self, indices: Int64Array) -> SampleBatch:
            start = self.reads * len(indices)
            assert self.announced[start : start + len(indices)] == indices.tolist()
            assert len(self.announced) - start <= 24  # half the window of this rank, and the batch itself
            return super().read(indices)

    source = Listening(200, blocks=Blocks(np.arange(10, 201, 10), 8))
    with Loader(source, batch_size=8, seed=1, rank=rank, world_size=2, start=8, prefetch=0) as loader:
        assert len(list(itertools.islice(loader, 100))) == 100


def test_data_that_all_fits_is_not_announced() -> None:
    """Where any image is as near as any other, nothing is worked out ahead."""
    source = CountingSource(20)
    with Loader(source, batch_size=5, seed=0, prefetch=0) as loader:
        list(itertools.islice(loader, 8))
    assert source.announced == []


@given(batch_size=st.integers(1, 40), world_size=st.integers(1, 20), unit=st.integers(1, 4))
def test_images_that_stay_together_are_on_one_rank(batch_size: int, world_size: int, unit: int) -> None:
    """Whole units of neighbours go to one rank, and the ranks differ by at most one unit."""
    batch_size *= unit
    parts = [rank_slice(batch_size, rank, world_size, unit) for rank in range(world_size)]
    assert all(part.start % unit == part.stop % unit == 0 for part in parts)
    lengths = [part.stop - part.start for part in parts]
    assert sum(lengths) == batch_size
    assert max(lengths) - min(lengths) <= unit


@pytest.mark.parametrize("data", [{"length": 100}, IN_BLOCKS], ids=["anywhere", "in blocks"])
def test_images_that_are_held_out_are_never_drawn(data: dict[str, Any]) -> None:
    """An epoch is all other images, once each, on any number of workers."""
    held_out = held_out_indices(data["length"], 0.1)
    ranks = [
        stream(data["length"] * 9 // 10 // 5, batch_size=5, seed=4, held_out=held_out, rank=rank, world_size=2, **data)
        for rank in range(2)
    ]
    drawn = sorted(index for _, index in itertools.chain(*ranks))
    assert drawn == sorted(set(range(data["length"])) - set(held_out.tolist()))


def test_waiting_for_data_is_measured() -> None:
    """wait_seconds is the time that a slow source cost the consumer."""

    class Slow(CountingSource):
        def read(self, indices: Int64Array) -> SampleBatch:
            time.sleep(0.05)
            return super().read(indices)

    with Loader(Slow(10), batch_size=2, seed=0) as loader:
        next(loader)
        assert loader.wait_seconds >= 0.05
        time.sleep(0.3)
        waited = loader.wait_seconds
        next(loader)
        assert loader.wait_seconds - waited < 0.05


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 3, "world_size": 4}, UsageError, "batch_size 3: .* number of workers, 4"),
        ({"batch_size": 21}, SourceError, "batch_size 21: the source has only 20 images, and"),
        (
            {"batch_size": 19, "held_out": held_out_indices(20, 0.1)},
            SourceError,
            "batch_size 19: the source has only 18 images besides the 2 held out",
        ),
        ({"batch_size": 4, "unit": 3}, UsageError, "batch_size 4: must be a multiple of 3"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, UsageError, "rank 2: must lie in"),
        ({"batch_size": 4, "seed": -1}, UsageError, "seed -1"),
        ({"batch_size": 4, "start": -1}, UsageError, "start -1"),
    ],
)
def test_impossible_requests_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    """A batch that cannot be divided or filled is refused before anything is read."""
    source = CountingSource(20)
    with pytest.raises(error, match=message):
        Loader(source, **{"seed": 0, **settings})
    assert source.reads == 0
