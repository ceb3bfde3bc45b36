"""Endless batches of training images in an order that depends on the seed alone, prepared ahead in a thread.

In: a source, a global batch size, a rank. Out: images, labels and the number of each draw. The cursor is one number,
images_seen: any number of workers, stopped and started anywhere, draws the same images in the same order.
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
from genworker.sampling.latents import Stream, raw_words

if TYPE_CHECKING:
    from types import TracebackType

    from genworker.schema import Int64Array, Pixels
    from genworker.sources.base import Source


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


def permutation(length: int, seed: int, epoch: int) -> Int64Array:
    """The order of the ``length`` images of a source in one epoch, int64 [length].

    Made by sorting Philox words, not by numpy's ``permutation``: numpy keeps the former the same between its versions, and
    a resumed run may meet another version.
    """
    words = raw_words(seed, Stream.ORDER, epoch, 1, length)[0]
    return np.argsort(words, kind="stable").astype(np.int64)


def images_of(pixels: Pixels) -> torch.Tensor:
    """Turn pixels uint8 [N, H, W, C] into images float32 [N, C, H, W] in [-1, 1]."""
    # In numpy, which stays on one thread: torch would share this out and wait for cores that the training step uses.
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images /= np.float32(127.5)
    images -= np.float32(1)
    return torch.from_numpy(images)


class Order:
    """Which image each draw takes: draw d is position d % length of the permutation of epoch d // length."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._epochs: dict[int, Int64Array] = {}

    def indices(self, draws: Int64Array) -> Int64Array:
        """The image index of each draw (int64 [n], each at least 0), int64 [n]."""
        epochs, positions = np.divmod(draws, self._length)
        needed = np.unique(epochs).tolist()
        # Batches move forward, so the epochs of the last batch are all that is worth keeping.
        kept = {epoch: self._epochs[epoch] for epoch in needed if epoch in self._epochs}
        self._epochs = kept | {e: permutation(self._length, self._seed, e) for e in needed if e not in kept}
        indices = np.empty(len(draws), np.int64)
        for epoch, order in self._epochs.items():
            indices[epochs == epoch] = order[positions[epochs == epoch]]
        return indices


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
        prefetch: int = 2,
    ) -> None:
        """Check the request; nothing is read before the first batch is asked for.

        Args:
            source: where the images come from; read from one thread at a time.
            batch_size: images per global batch, the sum over all ranks.
            seed: decides the order; in [0, 2**63).
            rank: which part of every global batch this loader makes.
            world_size: number of ranks.
            start: images seen before, at any position of an epoch.
            unit: neighbours of a batch that stay on one rank; divides batch_size.
            prefetch: batches to prepare ahead.

        Raises:
            UsageError: a number is out of its range.
            SourceError: the source has fewer images than one batch.
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
        if batch_size > len(source):
            raise SourceError(
                f"batch_size {batch_size}: the source has only {len(source)} images, and a larger batch "
                "would repeat some of them; lower batch_size or bring more data"
            )
        self.images_seen = start
        self.wait_seconds = 0.0
        self._source, self._batch_size, self._prefetch = source, batch_size, prefetch
        self._part = rank_slice(batch_size, rank, world_size, unit)
        self._order = Order(len(source), seed)
        self._ready: deque[LoaderBatch] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

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
        """End the thread and drop what it prepared; waits for a read that is under way. Closing twice is fine."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _make_next(self) -> LoaderBatch:
        if self._closed:
            raise StopIteration
        return self._make(self.images_seen)

    def _make(self, first: int) -> LoaderBatch:
        draws = np.arange(first + self._part.start, first + self._part.stop, dtype=np.int64)
        batch = self._source.read(self._order.indices(draws))
        return LoaderBatch(
            draws=draws,
            images=images_of(batch.pixels),
            labels=None if batch.labels is None else torch.from_numpy(batch.labels),
            images_seen=first + self._batch_size,
        )

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
