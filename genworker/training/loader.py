"""Endless batches of training images in an order that the seed decides, prepared ahead in a thread.

In: a source, a global batch size, a rank. Out: images, labels and the number of each draw. The cursor is one number,
images_seen: any number of workers, stopped and started anywhere, draws the same images in the same order. A store that does
not answer is asked again; what is wrong with the data itself ends the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from genworker.errors import SourceError, UsageError
from genworker.training.order import Order
from genworker.training.reader import Reader

if TYPE_CHECKING:
    from types import TracebackType

    from genworker.schema import Int64Array, Pixels
    from genworker.sources.base import Source

_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class LoaderBatch:
    """One rank's part of a global batch.

    Attributes:
        draws: int64 [n], number of each draw since the start of training; the same on any number of workers.
        images: float32 [n, C, H, W] in [-1, 1].
        labels: int64 [n], or None for unlabelled data.
        images_seen: the cursor after the whole global batch, where a resumed loader starts.
    """

    draws: Int64Array
    images: torch.Tensor
    labels: torch.Tensor | None
    images_seen: int


def rank_slice(batch_size: int, rank: int, world_size: int, unit: int = 1) -> slice:
    """The part of a global batch that ``rank`` computes.

    The slices of all ranks are contiguous, cover the batch in order, hold whole units of ``unit`` neighbours (which must
    divide the batch), and differ in length by at most one unit.
    """
    base, longer = divmod(batch_size // unit, world_size)
    first = rank * base + min(rank, longer)
    return slice(unit * first, unit * (first + base + (rank < longer)))


def images_of(pixels: Pixels) -> torch.Tensor:
    """Turn pixels uint8 [N, H, W, C] into images float32 [N, C, H, W] in [-1, 1]."""
    # In numpy, which stays on one thread: torch would share this out and wait for cores that the training step uses.
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images /= np.float32(127.5)
    images -= np.float32(1)
    return torch.from_numpy(images)


class Loader:
    """Iterates over one rank's parts of the global batches from ``start`` on, without end.

    Use it as a context manager, or call `close`: a thread prepares up to ``prefetch`` batches ahead (0: no thread).

    Attributes:
        images_seen: the cursor after the last batch handed out; keep it in a checkpoint and pass it as ``start``.
        wait_seconds: how long the consumer has waited for data so far.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        unit: int = 1,
        prefetch: int = 4,
        held_out: Int64Array | None = None,
        patience_seconds: float = 120.0,
    ) -> None:
        """Check the request; nothing is read before the first batch is asked for.

        Args:
            source: where the images come from.
            batch_size: images per global batch, the sum over all ranks. Of data in blocks it has a part in the order.
            seed: decides the order; in [0, 2**63).
            rank: which part of every global batch this loader makes.
            world_size: number of ranks.
            start: images seen before, at any position of an epoch.
            unit: neighbours of a batch that stay on one rank; divides batch_size.
            prefetch: batches to prepare ahead.
            held_out: indices of images that are never drawn, rising; see `order.held_out_indices`.
            patience_seconds: how long a store that fails is asked again for one batch.

        Raises:
            UsageError: a number is out of its range.
            SourceError: the source has fewer images to train on than one batch.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank}: must lie in [0, world_size {world_size})")
        if batch_size % unit:
            raise UsageError(f"batch_size {batch_size}: must be a multiple of {unit}, the images that stay together")
        if batch_size < world_size * unit:
            raise UsageError(
                f"batch_size {batch_size}: is the number of images per step over all workers, so it must be at least "
                f"the number of workers, {world_size}; raise batch_size or use fewer workers"
            )
        if not 0 <= seed < 2**63:
            raise UsageError(f"seed {seed}: must lie in [0, 2**63)")
        if start < 0 or prefetch < 0:
            raise UsageError(f"start {start}, prefetch {prefetch}: neither can be negative")
        held = np.empty(0, np.int64) if held_out is None else held_out
        if batch_size > len(source) - len(held):
            raise SourceError(
                f"batch_size {batch_size}: the source has only {len(source) - len(held)} images"
                f"{f' besides the {len(held)} held out' if len(held) else ''}, and a larger batch would repeat some of "
                "them; lower batch_size or bring more data"
            )
        self.images_seen = start
        self.wait_seconds = 0.0
        self._source, self._batch_size, self._prefetch = source, batch_size, prefetch
        self._part = rank_slice(batch_size, rank, world_size, unit)
        self._reader = Reader(source, held, patience_seconds)
        self._order = Order(len(source), seed, held_out=held, blocks=source.blocks, batch_size=batch_size, unit=unit)
        self._announced = start
        self._ready: deque[LoaderBatch] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def retries(self) -> int:
        """How often the store failed so far, and was asked again."""
        return self._reader.retries

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LoaderBatch:
        """The next batch; raises what the source raised, after all batches that came before it."""
        began = time.perf_counter()
        try:
            batch = self._take() if self._prefetch else self._make_next()
        finally:
            self.wait_seconds += time.perf_counter() - began
        self.images_seen = batch.images_seen
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and drop what it prepared; waits a little for a read under way. Closing twice is fine."""
        self._reader.stop()
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            # A request to a store that is gone takes its time to fail; the thread ends after it.
            self._thread.join(_CLOSE_SECONDS)

    def _make_next(self) -> LoaderBatch:
        if self._closed:
            raise StopIteration
        return self._make(self.images_seen)

    def _make(self, first: int) -> LoaderBatch:
        self._announce(first)
        draws = self._draws(first)
        batch = self._reader.read(self._order.indices(draws))
        return LoaderBatch(
            draws=draws,
            images=images_of(batch.pixels),
            labels=None if batch.labels is None else torch.from_numpy(batch.labels),
            images_seen=first + self._batch_size,
        )

    def _draws(self, first: int) -> Int64Array:
        return np.arange(first + self._part.start, first + self._part.stop, dtype=np.int64)

    def _announce(self, first: int) -> None:
        """Let the source fetch what this rank draws next, as far ahead as the order says that there is room for."""
        while self._order.look_ahead and self._announced <= first + self._order.look_ahead:
            self._source.prefetch(self._order.indices(self._draws(self._announced)))
            self._announced += self._batch_size

    def _take(self) -> LoaderBatch:
        with self._changed:
            if self._thread is None and not self._closed:
                # A daemon, so that a program that forgets to close can still end.
                self._thread = threading.Thread(target=self._fill, args=(self.images_seen,), name="loader", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._ready or self._failure or self._closed)
            if self._closed:
                raise StopIteration
            if not self._ready and self._failure is not None:
                raise self._failure
            batch = self._ready.popleft()
            self._changed.notify_all()
            return batch

    def _fill(self, first: int) -> None:
        try:
            while not self._closed:
                batch = self._make(first)
                first = batch.images_seen
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._prefetch or self._closed)
                    if not self._closed:
                        self._ready.append(batch)
                        self._changed.notify_all()
        except BaseException as err:  # whatever it is, it belongs to the consumer, who would otherwise wait forever
            with self._changed:
                self._failure = err
                self._changed.notify_all()
