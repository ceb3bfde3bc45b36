"""The real images that an evaluation compares with: a reference that the model never saw, and training images for the floor.

In: the data part of a spec, which share of it is held out, and a split. Out: two disjoint sets of images. A model is compared
with images that it was not trained on, so that copying the training data earns no more than the training data would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genworker.config import digest_of
from genworker.errors import UsageError
from genworker.schema import ImageSchema, Int64Array, SampleBatch
from genworker.sources import open_source
from genworker.sources.base import Source, SourceConfig
from genworker.training.order import held_out_indices, permutation
from genworker.training.reader import read_exactly

MAX_REFERENCE = 10_000
_CHOICE_SEED = 0  # which images are taken is the same for all models
_READ_AT_ONCE = 500

EvaluationSplit = Literal["held-out", "test"]


@dataclass(frozen=True)
class RealSet:
    """Some images of a source, in the order of ``indices``, int64 [N]."""

    source: Source
    indices: Int64Array

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, positions: Int64Array) -> SampleBatch:
        """The images at ``positions`` of this set, int64 [n], without those that cannot be decoded.

        None stands in for another: the next one may be of the other set, and held-out numbers are of held-out images.
        """
        return read_exactly(self.source, self.indices[positions])

    def batches(self) -> Iterator[SampleBatch]:
        """All images, some at a time."""
        for start in range(0, len(self), _READ_AT_ONCE):
            batch = self.read(np.arange(start, min(start + _READ_AT_ONCE, len(self)), dtype=np.int64))
            if len(batch.pixels):
                yield batch

    def some(self, count: int) -> RealSet:
        """``count`` images (all, when there are fewer), always the same random ones."""
        if count >= len(self):
            return self
        return RealSet(self.source, self.indices[permutation(len(self), _CHOICE_SEED, 0)[:count]])

    def digest(self) -> str:
        """SHA-256 (hex) over the source's digest and which images of it these are."""
        indices = hashlib.sha256(np.ascontiguousarray(self.indices.astype("<i8")).data).hexdigest()
        return digest_of([self.source.digest(), indices])


@dataclass(frozen=True)
class RealImages:
    """What generated images stand beside.

    Attributes:
        train: images that models are, or may be, trained on; extractors are.
        reference: images that no model was trained on.
        split: which those are.
    """

    train: RealSet
    reference: RealSet
    split: EvaluationSplit

    @property
    def schema(self) -> ImageSchema:
        """Of all these images."""
        return self.train.source.schema

    @property
    def remarks(self) -> list[str]:
        """What both sources tell of their data, each line once; see `base.Source`."""
        return list(dict.fromkeys([*self.train.source.remarks, *self.reference.source.remarks]))


def real_images(
    data: SourceConfig, holdout_share: float, split: EvaluationSplit, source: Source | None = None
) -> RealImages:
    """Open the real images of a training spec.

    Args:
        data: the spec's data; its own split is the one that models are trained on.
        holdout_share: the spec's ``training.holdout_share``.
        split: ``held-out`` (at most 1,000 images) or ``test`` (at most 10,000, where the source has such a split).
        source: ``data``, where it is open already.

    Raises:
        UsageError: nothing is held out.
        SourceError: the data or its test split is missing.
    """
    source = source or open_source(data)
    held_out = held_out_indices(len(source), holdout_share)
    train = RealSet(source, np.setdiff1d(np.arange(len(source), dtype=np.int64), held_out))
    if split == "held-out":
        if not len(held_out):
            raise UsageError(
                f"training.holdout_share {holdout_share:g} of {len(source)} images leaves none to compare with; raise it, "
                "evaluate on the test split, or set evaluation.num_samples to 0 to train without evaluation"
            )
        return RealImages(train, RealSet(source, held_out), split)
    test = open_source(data.model_copy(update={"split": "test", "limit": None}))
    everything = RealSet(test, np.arange(len(test), dtype=np.int64))
    return RealImages(train, everything.some(MAX_REFERENCE), split)
