"""The common part of sources whose images lie in blocks: a block is fetched whole, and kept while there is room for it.

In: blocks by number, from a subclass. Out: single images of them. Memory is bounded: the least recently used blocks make
room for others, and only a few are fetched at a time.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np

from genworker.errors import GenworkerError, StoreError
from genworker.schema import ImageSchema, Int64Array
from genworker.sources.base import Blocks
from genworker.sources.encoded import EncodedImage, EncodedSource

_FETCHES = 8  # at a time; half of them ahead of need


class Block(Protocol):
    """The encoded images of one block in memory."""

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        ...

    def image(self, row: int) -> EncodedImage:
        """One of them; raises CorruptImageError with the reason alone."""
        ...


BlockT = TypeVar("BlockT", bound=Block)


class BlockCache(Generic[BlockT]):
    """Blocks by number, up to ``max_bytes`` of them and at least one; safe to use from many threads.

    Attributes:
        held_bytes: of the blocks that are kept.
        num_fetched: blocks fetched so far, the same one again included.
    """

    def __init__(self, fetch: Callable[[int], BlockT], max_bytes: int, fetches: int = _FETCHES) -> None:
        self.held_bytes = 0
        self.num_fetched = 0
        self._fetch, self._max_bytes = fetch, max_bytes
        self._lock = threading.Lock()
        self._fetching = threading.BoundedSemaphore(fetches)
        self._num_threads, self._num_kept = max(1, fetches // 2), 0
        self._blocks: OrderedDict[int, Future[BlockT]] = OrderedDict()
        self._coming: set[int] = set()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self._num_kept

    def get(self, number: int) -> BlockT:
        """The block, fetched unless it is here or another thread is about to have it; raises what fetching raised."""
        with self._lock:
            found = self._blocks.get(number)
            if found is None:
                mine = self._blocks[number] = Future()
            else:
                self._blocks.move_to_end(number)
        if found is not None:
            return found.result()
        try:
            with self._fetching:
                block = self._fetch(number)
        except BaseException as err:
            with self._lock:
                del self._blocks[number]  # the next one who asks tries again
            mine.set_exception(err)
            raise
        with self._lock:
            self.num_fetched += 1
            mine.set_result(block)
            self._make_room(block.nbytes)
        return block

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch blocks in other threads, in this order; failures are left to `get`."""
        with self._lock:
            new = [n for n in numbers if n not in self._blocks and n not in self._coming]
            self._coming.update(new)
            if new and self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="prefetch")
        for number in new:
            assert self._pool is not None
            self._pool.submit(self._prefetch, number)

    def _prefetch(self, number: int) -> None:
        with self._lock:
            if number not in self._coming:
                return
            self._coming.discard(number)
            if number in self._blocks:
                return
        try:
            self.get(number)
        except StoreError:
            # Whoever reads asks a store that fails again; a program that ends should not wait for it once per block.
            with self._lock:
                self._coming.clear()
        except GenworkerError:
            pass

    def _make_room(self, added: int) -> None:
        held = self.held_bytes + added
        self._num_kept += 1
        while held > self._max_bytes and self._num_kept > 1:
            number = next(number for number, block in self._blocks.items() if block.done())
            held -= self._blocks.pop(number).result().nbytes
            self._num_kept -= 1
        self.held_bytes = held  # set once, because it is read without the lock


class BlockSource(EncodedSource, Generic[BlockT]):
    """Images in blocks, the first of which begins with image 0."""

    blocks: Blocks

    def __init__(
        self,
        *,
        url: str,
        schema: ImageSchema,
        rows: Int64Array,
        sizes: Int64Array,
        limit: int | None,
        max_corrupt: int,
        cache_bytes: int,
        fetches: int = _FETCHES,
    ) -> None:
        """Describe the blocks: ``rows`` images each, about ``sizes`` bytes in memory (both int64 [n])."""
        self._ends = np.cumsum(rows, dtype=np.int64)
        length = min(int(self._ends[-1]), limit or int(self._ends[-1]))
        super().__init__(url=url, schema=schema, length=length, max_corrupt=max_corrupt)
        usual_bytes = max(1, int(sizes[rows > 0].mean()))
        window = max(1, cache_bytes // (2 * usual_bytes))
        self.blocks = Blocks(np.minimum(self._ends, length), window)
        # Whoever reads here and there holds, besides the cache, what is being fetched.
        self._cache: BlockCache[BlockT] = BlockCache(self._fetch_block, cache_bytes, fetches=min(window, fetches))

    @abstractmethod
    def _fetch_block(self, number: int) -> BlockT:
        """Fetch a block; called from several threads."""

    def prefetch(self, indices: Int64Array) -> None:
        """Begin to fetch the blocks of the images at ``indices``; see `base.Source.prefetch`."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        self._cache.prefetch(dict.fromkeys(numbers.tolist()))

    def _locate(self, index: int) -> tuple[int, int]:
        """The block that an image is in, and its row there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def _fetch(self, index: int) -> EncodedImage:
        number, row = self._locate(index)
        return self._cache.get(number).image(row)
