"""A source whose images are all in memory, the common part of the sources of small images.

In: uint8 pixels and labels. Out: rows of them. It never decodes anything, so no image of it is ever corrupt.
"""

from __future__ import annotations

import hashlib

import numpy as np

from genworker.config import canonical_json
from genworker.schema import ImageSchema, Int64Array, Pixels, SampleBatch
from genworker.sources.base import Blocks, check_indices


class ArraySource:
    """Images [N, H, W, C] and labels [N] in memory."""

    schema: ImageSchema
    corrupt: list[str]
    blocks: Blocks | None = None
    remarks: tuple[str, ...] = ()

    def _hold(self, pixels: Pixels, labels: Int64Array, class_names: tuple[str, ...], num_classes: int) -> None:
        _, height, width, channels = pixels.shape
        self.schema = ImageSchema(
            channels=channels, height=height, width=width, num_classes=num_classes, class_names=class_names
        )
        self.corrupt = []
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: Int64Array) -> SampleBatch:
        """Return the images at ``indices``; see `base.Source.read`."""
        check_indices(indices, len(self))
        return SampleBatch(sample_index=indices.copy(), pixels=self._pixels[indices], labels=self._labels[indices])

    def prefetch(self, indices: Int64Array) -> None:
        """Do nothing: all images are here."""

    def digest(self) -> str:
        """SHA-256 over shape, classes, labels and every pixel."""
        about = canonical_json([len(self), self.schema.model_dump(mode="json")])
        sha256 = hashlib.sha256(about.encode())
        sha256.update(np.ascontiguousarray(self._labels.astype("<i8")).data)
        sha256.update(np.ascontiguousarray(self._pixels).data)
        return sha256.hexdigest()
