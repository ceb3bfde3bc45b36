"""A cache of blocks keeps within its bytes, fetches each block once, and leaves failures to whoever asks."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker import sources
from genworker.errors import SourceError, StoreError
from genworker.sources.blocks import BlockCache, BlockSource
from genworker.sources.encoded import EncodedImage
from genworker.training.loader import Loader
from tests.unit.test_sources_webdataset import write_tar

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Numbered:
    """A block of a hundred bytes that knows its number."""

    number: int
    nbytes: int = 100

    def image(self, row: int) -> EncodedImage:
        return EncodedImage(b"", row)


class Shelf:
    """Where blocks come from: counts what is fetched, and how much of it at a time."""

    def __init__(self, *, seconds: float = 0.0, failures: int = 0) -> None:
        self.fetched: list[int] = []
        self.at_once = 0
        self._now, self._seconds, self._failures = 0, seconds, failures
        self._lock = threading.Lock()

    def fetch(self, number: int) -> Numbered:
        with self._lock:
            self.fetched.append(number)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
            fails = len(self.fetched) <= self._failures
        time.sleep(self._seconds)
        with self._lock:
            self._now -= 1
        if fails:
            raise StoreError("no route")
        return Numbered(number)


def test_blocks_are_kept_up_to_the_limit() -> None:
    """The least recently used block makes room, and one is always kept, however large."""
    shelf = Shelf()
    cache = BlockCache(shelf.fetch, max_bytes=350)
    for number in (0, 1, 2, 0, 3):
        assert cache.get(number).number == number
        assert cache.held_bytes <= 350
    assert len(cache) == 3
    assert shelf.fetched == [0, 1, 2, 3]
    cache.get(0)
    cache.get(1)
    assert shelf.fetched == [0, 1, 2, 3, 1]
    tiny = BlockCache(shelf.fetch, max_bytes=0)
    assert tiny.get(7) is tiny.get(7)
    tiny.get(8)
    assert (len(tiny), tiny.held_bytes) == (1, 100)


def test_many_threads_fetch_a_block_once() -> None:
    """Threads that want the same block wait for one fetch, and no more blocks are fetched at a time than allowed."""
    shelf = Shelf(seconds=0.01)
    cache = BlockCache(shelf.fetch, max_bytes=10**6, fetches=3)
    wanted = [n % 10 for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert [block.number for block in pool.map(cache.get, wanted)] == wanted
    assert sorted(shelf.fetched) == list(range(10))
    assert shelf.at_once <= 3
    assert cache.num_fetched == 10


def test_blocks_that_are_announced_are_there_when_they_are_read() -> None:
    """Fetching ahead returns at once, fetches each block once, and leaves the reader nothing to wait for."""
    shelf = Shelf(seconds=0.05)
    cache = BlockCache(shelf.fetch, max_bytes=10**6)
    began = time.perf_counter()
    cache.prefetch([3, 1, 2])
    cache.prefetch([1, 4])
    assert time.perf_counter() - began < 0.05
    assert [cache.get(n).number for n in (3, 1, 2, 4)] == [3, 1, 2, 4]
    assert sorted(shelf.fetched) == [1, 2, 3, 4]


def test_a_failure_is_raised_to_the_reader_and_forgotten() -> None:
    """A block that could not be fetched is not kept as failed: the next one who asks gets it."""
    shelf = Shelf(failures=2)
    cache = BlockCache(shelf.fetch, max_bytes=10**6)
    cache.prefetch([5])
    while len(shelf.fetched) < 1:
        time.sleep(0.001)
    time.sleep(0.05)
    with pytest.raises(StoreError, match="no route"):
        cache.get(5)
    assert cache.get(5).number == 5
    assert (len(cache), cache.held_bytes) == (1, 100)


def test_a_store_that_fails_is_not_asked_for_all_that_was_announced() -> None:
    """After a failure the rest of what was announced is left to whoever reads it: nobody waits for a store that is gone."""
    shelf = Shelf(seconds=0.02, failures=100)
    cache = BlockCache(shelf.fetch, max_bytes=10**6)
    cache.prefetch(range(100))
    assert cache._pool is not None
    cache._pool.shutdown()  # as at the end of a program
    assert len(shelf.fetched) <= 8


def noisy_picture(number: int) -> bytes:
    """A 32x32 picture that does not compress, about 1.1 KB; its first pixel tells the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32)).astype(np.uint8)
    pixels[0, :2] = number % 256, number // 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


NUM_IMAGES = 2400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.6 MB of pictures, as Parquet with row groups of 60, and as tar files; sorted by class."""
    folder = tmp_path_factory.mktemp("data")
    pictures = [noisy_picture(n) for n in range(NUM_IMAGES)]
    (folder / "parquet").mkdir()
    for part in range(2):
        span = slice(part * NUM_IMAGES // 2, (part + 1) * NUM_IMAGES // 2)
        columns = {"image": pictures[span], "label": (np.arange(NUM_IMAGES) // 240)[span]}
        pq.write_table(pa.table(columns), folder / "parquet" / f"train-{part}.parquet", row_group_size=60)
        files = [
            entry
            for n in range(span.start, span.stop)
            for entry in ((f"{n:06}.png", pictures[n]), (f"{n:06}.cls", b"%d" % (n // 240)))
        ]
        write_tar(folder / "webdataset" / f"train-{part}.tar", files)
    return folder


def open_source(folder: Path, name: str, **more: Any) -> BlockSource[Any]:
    own = {"block_bytes": 150_000} if name == "webdataset" else {}
    values = {"url": str(folder / name), "image_size": 32, "channels": 1} | own | more
    source = sources.open_source(sources.get(name).Config.parse(values, origin="test"))
    assert isinstance(source, BlockSource)
    return source


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_data_larger_than_the_cache_is_trained_on_in_bounded_memory(name: str, data: Path) -> None:
    """An epoch of data several times the cache: it holds no more than allowed, and fetches little more than once each.

    Without an order of blocks, random reads would fetch a block for nearly every image.
    """
    cache_bytes = 2**20 if name == "parquet" else 2**21
    source = open_source(data, name, cache_bytes=cache_bytes)
    num_blocks = len(source.blocks.ends)
    assert num_blocks > 2 * source.blocks.window
    seen: list[int] = []
    most = 0
    with Loader(source, batch_size=40, seed=0, prefetch=2) as loader:
        while loader.images_seen < NUM_IMAGES:
            batch = next(loader)
            seen += (((batch.images[:, 0, 0, :2] + 1) * 127.5).round().long() @ torch_pair()).tolist()
            most = max(most, source._cache.held_bytes)
            assert batch.labels is not None
    assert sorted(seen) == list(range(NUM_IMAGES))
    assert most <= cache_bytes
    assert num_blocks <= source._cache.num_fetched <= 1.6 * num_blocks  # some of them for the next epoch


def torch_pair() -> Any:
    import torch

    return torch.tensor([1, 256])


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_batches_of_sorted_data_hold_many_classes(name: str, data: Path) -> None:
    """Data that is sorted by class, and larger than the cache, still gives batches of several classes."""
    source = open_source(data, name, cache_bytes=2**20 if name == "parquet" else 2**21)
    with Loader(source, batch_size=40, seed=0, prefetch=0) as loader:
        kinds = []
        for _ in range(50):
            labels = next(loader).labels
            assert labels is not None
            kinds.append(len(labels.unique()))
    assert np.mean(kinds) >= 4


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_workers_share_the_reading(name: str, data: Path) -> None:
    """Four workers draw what one draws, and fetch together little more than one does."""
    alone = open_source(data, name, cache_bytes=2**20)
    with Loader(alone, batch_size=40, seed=3, prefetch=0) as loader:
        expected = [next(loader).labels for _ in range(60)]
    fetched = 0
    parts: list[list[Any]] = []
    for rank in range(4):
        source = open_source(data, name, cache_bytes=2**20)
        with Loader(source, batch_size=40, seed=3, rank=rank, world_size=4, prefetch=0) as loader:
            parts.append([next(loader).labels for _ in range(60)])
        fetched += source._cache.num_fetched
    for step, labels in enumerate(expected):
        assert labels is not None
        assert [label for part in parts for label in part[step].tolist()] == labels.tolist()
    assert fetched <= 2.5 * alone._cache.num_fetched


def test_labels_that_are_out_of_range_stop_the_run(data: Path) -> None:
    """A loader passes on what the source says of wrong labels, with the file's name."""
    source = open_source(data, "parquet", num_classes=5)
    with Loader(source, batch_size=2400, seed=0) as loader, pytest.raises(SourceError, match="num_classes 5"):
        next(loader)
