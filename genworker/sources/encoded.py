"""The common part of sources that decode images on demand: threads, and what happens to images that cannot be decoded.

In: encoded images by index, from a subclass. Out: pixels. A corrupt image is replaced by the next good one, always the
same one, and named; it is never skipped silently.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from genworker.errors import CorruptImageError, SourceError
from genworker.schema import ImageSchema, Int64Array, Pixels, SampleBatch
from genworker.sources.base import check_indices, some_of
from genworker.sources.images import decode_image

# Decoding leaves Python's lock, and requests to an object store mostly wait; a store keeps as many connections.
NUM_THREADS = 16
_MAX_NAMED = 10


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of one image file and its class (0 where the source is unlabelled)."""

    data: bytes
    label: int


class EncodedSource(ABC):
    """Images of any size and encoding, read as ``schema`` says."""

    schema: ImageSchema
    corrupt: list[str]
    remarks: tuple[str, ...] = ()

    def __init__(self, *, url: str, schema: ImageSchema, length: int, max_corrupt: int) -> None:
        self.schema = schema
        self.corrupt = []
        self._url, self._length, self._max_corrupt = url, length, max_corrupt
        self._bad: set[int] = set()
        self._counting = threading.Lock()

    @abstractmethod
    def _fetch(self, index: int) -> EncodedImage:
        """Get one encoded image; called from several threads, in each in rising order of indices.

        Raises CorruptImageError with the reason alone where the source knows that it is no image.
        """

    @abstractmethod
    def _name(self, index: int) -> str:
        """What the user finds the image at ``index`` by: its key, or file and row."""

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Int64Array) -> SampleBatch:
        """Return the images at ``indices``; see `base.Source.read`."""
        check_indices(indices, len(self))
        chosen = [self._good_from(int(index)) for index in indices]
        decoded: dict[int, tuple[Pixels, int]] = {}
        while missing := sorted(set(chosen) - decoded.keys()):
            for index, outcome in zip(missing, self._try_all(missing), strict=True):
                if isinstance(outcome, CorruptImageError):
                    self._count_corrupt(index, outcome)
                else:
                    decoded[index] = outcome
            chosen = [self._good_from(index) for index in chosen]
        pixels = np.empty((len(chosen), *self.schema.pixel_shape), np.uint8)
        labels = np.empty(len(chosen), np.int64)
        for row, index in enumerate(chosen):
            pixels[row], labels[row] = decoded[index]
        return SampleBatch(
            sample_index=np.array(chosen, np.int64), pixels=pixels, labels=labels if self.schema.num_classes else None
        )

    def _try_all(self, indices: list[int]) -> list[tuple[Pixels, int] | CorruptImageError]:
        # A stretch for each thread, not one image at a time: handing over a small image costs as much as decoding it.
        step = -(-len(indices) // NUM_THREADS)
        stretches = [indices[first : first + step] for first in range(0, len(indices), step)]
        if len(stretches) == 1:
            return [self._try(index) for index in indices]
        with ThreadPoolExecutor(len(stretches)) as pool:
            return [found for part in pool.map(lambda part: [self._try(i) for i in part], stretches) for found in part]

    def _try(self, index: int) -> tuple[Pixels, int] | CorruptImageError:
        try:
            encoded = self._fetch(index)
            pixels = decode_image(encoded.data, size=self.schema.height, channels=self.schema.channels)
        except CorruptImageError as err:
            return err
        return pixels, encoded.label

    def _good_from(self, index: int) -> int:
        """The first index from ``index`` on, around the end, that is not known to be corrupt."""
        while index in self._bad:
            index = (index + 1) % len(self)
        return index

    def _count_corrupt(self, index: int, reason: CorruptImageError) -> None:
        name = self._name(index)
        with self._counting:
            if index in self._bad:  # another thread met it at the same time
                return
            self._bad.add(index)
            self.corrupt.append(name)
            if len(self._bad) <= self._max_corrupt and len(self._bad) < len(self):
                return
            named = some_of(self.corrupt, _MAX_NAMED)
            rule = (
                f"more than max_corrupt {self._max_corrupt}"
                if len(self._bad) > self._max_corrupt
                else "so no image is left"
            )
            raise SourceError(
                f"{self._url}: {len(self._bad)} of {len(self)} images cannot be used, {rule}: {named}; the last one "
                f"{reason}; repair or remove them, or raise max_corrupt"
            )
