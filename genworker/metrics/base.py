"""The contract of a metric: statistics that are collected anywhere, merged, and turned into numbers.

In: observed images of two kinds, real ones to compare with and generated ones. Out: numbers by name, with a card that says
how they were made (see `cards`). A metric never reads data, never generates, and never draws an unseeded random number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from genworker.errors import UsageError
from genworker.schema import Int64Array, Pixels

Features = npt.NDArray[np.float32]
Better = Literal["low", "high"]
Need = Literal["classes", "labels"]


@dataclass(frozen=True)
class Observed:
    """Images as metrics see them.

    Attributes:
        pixels: uint8 [n, H, W, C].
        labels: int64 [n], the class of a real image, or the one that a generated image was made for; None without classes.
        features: float32 [n, D], what the extractor says of each image.
        classes: int64 [n], the class that the extractor takes each image for; None where it knows no classes.
    """

    pixels: Pixels
    labels: Int64Array | None
    features: Features
    classes: Int64Array | None

    def __len__(self) -> int:
        return len(self.pixels)


class Metric(Protocol):
    """Collects statistics of real and generated images and compares the two.

    Attributes:
        numbers: the names of the numbers that `compute` returns, and whether low or high is better.
        needs: ``classes`` where the extractor must be a classifier, ``labels`` where generated images must have labels too.
        label: what the first number is called in tables, with ``{extractor}`` in it where that decides the value.
        costly: whether it takes minutes, so that it has to be asked for by name.
    """

    numbers: ClassVar[Mapping[str, Better]]
    needs: ClassVar[frozenset[Need]]
    label: ClassVar[str]
    costly: ClassVar[bool]

    def __init__(self, num_classes: int) -> None: ...

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers besides the images and the extractor; it goes on the card."""
        ...

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch of real or generated images."""
        ...

    def merge(self, other: Self) -> None:
        """Take over what ``other`` has seen, as if its batches had come after this one's."""
        ...

    def compute(self) -> dict[str, float]:
        """The numbers. Raises UsageError where too few images were seen."""
        ...


def require(num_real: int, num_generated: int, least: int, metric: str) -> None:
    """Raise UsageError unless there are at least ``least`` images of both kinds."""
    if min(num_real, num_generated) < least:
        raise UsageError(
            f"metric {metric}: {num_real} real and {num_generated} generated images; it needs at least {least} of each: "
            "raise the number of samples, or bring more held-out images (training.holdout_share)"
        )


class FeatureLists:
    """The features of both kinds of images in the order seen, for metrics that compare every pair."""

    def __init__(self) -> None:
        self._parts: dict[bool, list[Features]] = {True: [], False: []}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Keep the features of a batch."""
        self._parts[real].append(batch.features)

    def merge(self, other: FeatureLists) -> None:
        """Keep what ``other`` kept."""
        for real, parts in other._parts.items():
            self._parts[real] += parts

    def both(self, metric: str, least: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Real and generated features, float64 [N, D] and [M, D]; raises UsageError when there are too few."""
        counts = {real: sum(map(len, parts)) for real, parts in self._parts.items()}
        require(counts[True], counts[False], least, metric)
        return np.concatenate(self._parts[True], dtype=np.float64), np.concatenate(self._parts[False], dtype=np.float64)
