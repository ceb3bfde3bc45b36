"""Reads of a training run: a store that fails is asked again for a while, and what comes back is checked.

In: image indices. Out: batches that hold to the source's schema and no image that is held out. What another attempt cannot
mend (a missing object, no permission, wrong labels) is raised at once.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from genworker.errors import (
    ObjectExistsError,
    ObjectMissingError,
    SourceError,
    StoreAccessError,
    StoreError,
    StoreFullError,
)
from genworker.schema import SampleBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.schema import Int64Array
    from genworker.sources.base import Source

_FIRST_PAUSE_SECONDS = 0.5  # then twice as long each time
_LONGEST_PAUSE_SECONDS = 15.0
# Of a store's errors, those that another attempt cannot mend.
_FINAL = (ObjectMissingError, ObjectExistsError, StoreAccessError, StoreFullError)


class Reader:
    """Reads batches of a source.

    Attributes:
        retries: how often the store failed so far, and was asked again.
    """

    def __init__(self, source: Source, held_out: Int64Array, patience_seconds: float) -> None:
        self.retries = 0
        self._source, self._held_out, self._patience = source, held_out, patience_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the wait for a store that fails, if there is one: its error is raised."""
        self._stopped.set()

    def read(self, indices: Int64Array) -> SampleBatch:
        """Return the images at ``indices``, int64 [n], see `Source.read`; from one thread at a time.

        Raises:
            SourceError: the store failed for longer than the patience, or the data is wrong.
            StoreError: asking again is pointless, or was stopped.
        """
        return self._patiently(lambda: self._read_allowed(indices))

    def read_exactly(self, indices: Int64Array) -> SampleBatch:
        """The same of `read_exactly`: images may be missing, and none stands in for another."""
        return self._patiently(lambda: read_exactly(self._source, indices))

    def _patiently(self, read: Callable[[], SampleBatch]) -> SampleBatch:
        began, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                return read()
            except _FINAL:
                raise
            except StoreError as err:
                waited = time.monotonic() - began
                if waited >= self._patience:
                    raise SourceError(
                        f"{err}; it was asked again for {waited:.0f} s, and training.store_patience_seconds is "
                        f"{self._patience:g}: mend the store, then run the same command again"
                    ) from err
                # Spread out, so that the workers of a run do not all come back at the same moment.
                rest = min(pause * random.uniform(0.5, 1.0), self._patience - waited)  # noqa: S311 - guards nothing
                if self._stopped.wait(rest):
                    raise
                self.retries += 1
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _read_allowed(self, indices: Int64Array) -> SampleBatch:
        """One attempt; an image that stands in for a corrupt one is never one of those held out."""
        # Each time round, every one that stands on a held-out image moves beyond one at least.
        for _ in range(len(self._held_out) + 1):
            batch = self._source.read(indices)
            held = np.isin(batch.sample_index, self._held_out)
            if not held.any():
                check_batch(batch, self._source)
                return batch
            indices = np.where(held, (batch.sample_index + 1) % len(self._source), batch.sample_index)
        raise SourceError(
            f"{len(self._source.corrupt)} images could not be decoded, and all others are held out (training.holdout_share), "
            "so there is none to train on; repair or remove them"
        )


def check_batch(batch: SampleBatch, source: Source) -> None:
    """Raise SourceError unless pixels and labels are as the source's schema says; wrong labels would end up in a network."""
    schema = source.schema
    if batch.pixels.shape[1:] != schema.pixel_shape:
        height, width, channels = batch.pixels.shape[1:]
        raise SourceError(
            f"the source gives images of {height}x{width}x{channels}, and says that it has {schema.describe()}"
        )
    if (batch.labels is None) != (schema.num_classes == 0):
        raise SourceError(
            f"the source gives {'no labels' if batch.labels is None else 'labels'}, and says that it has {schema.describe()}"
        )
    if batch.labels is not None:
        wrong = np.flatnonzero((batch.labels < 0) | (batch.labels >= schema.num_classes))
        if wrong.size:
            raise SourceError(
                f"image {batch.sample_index[wrong[0]]} has label {batch.labels[wrong[0]]}; labels must lie in "
                f"[0, num_classes {schema.num_classes}): correct the label, or set data.num_classes"
            )


def read_exactly(source: Source, indices: Int64Array) -> SampleBatch:
    """Read the images at ``indices`` and no others: those that cannot be decoded are left out, not replaced."""
    batch = source.read(indices)
    check_batch(batch, source)
    right = batch.sample_index == indices
    return SampleBatch(
        sample_index=batch.sample_index[right],
        pixels=batch.pixels[right],
        labels=None if batch.labels is None else batch.labels[right],
    )
