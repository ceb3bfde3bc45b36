"""Precision, recall, density and coverage: how real the images look, and how much of the real variety they have.

In: features. Out: four numbers. An image counts as inside a set when it lies within the distance of some member to its k-th
nearest neighbour. Kynkäänniemi et al. 2019 (arXiv:1904.06991) for precision and recall, Naeem et al. 2020
(arXiv:2002.09797) for density and coverage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from genworker.metrics.base import Better, FeatureLists, Need, Observed

_NEAREST = 5
_CHUNK_BYTES = 64 * 2**20
_Array = npt.NDArray[np.float64]


class PrecisionRecall:
    """See the module; it keeps all features, and compares them in chunks of bounded memory."""

    numbers: ClassVar[Mapping[str, Better]] = {
        "precision": "high",
        "recall": "high",
        "density": "high",
        "coverage": "high",
    }
    needs: ClassVar[frozenset[Need]] = frozenset()
    label: ClassVar[str] = "precision-{extractor}"
    costly: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:  # noqa: ARG002  # all metrics are made alike
        self._lists = FeatureLists()

    @property
    def settings(self) -> dict[str, Any]:
        """The number of neighbours."""
        return {"k": _NEAREST}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        self._lists.update(batch, real=real)

    def merge(self, other: PrecisionRecall) -> None:
        """Take over what ``other`` has seen."""
        self._lists.merge(other._lists)

    def compute(self) -> dict[str, float]:
        """The four numbers; raises UsageError below k + 1 images of either kind."""
        return prdc(*self._lists.both("prdc", _NEAREST + 1), _NEAREST)


def prdc(real: _Array, generated: _Array, k: int) -> dict[str, float]:
    """Compare features [N, D] of real images with [M, D] of generated ones; k must be below N and M.

    precision: share of generated images inside the real set. recall: share of real images inside the generated set.
    density: how many real neighbourhoods a generated image lies in, over k; 1 for equal distributions, may be above.
    coverage: share of real images with a generated one in their neighbourhood.
    """
    center = real.mean(0)  # distances by products lose digits far from the origin
    real, generated = real - center, generated - center
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    inside_real = np.zeros(len(generated), np.int64)  # real neighbourhoods that hold each generated image
    recalled = covered = 0
    for rows, squared in _squared_distances(real, generated):
        within = squared < real_radii[rows, None]
        inside_real += within.sum(0)
        covered += int(within.any(1).sum())
        recalled += int((squared < generated_radii).any(1).sum())
    return {
        "precision": float((inside_real > 0).mean()),
        "recall": recalled / len(real),
        "density": float(inside_real.mean()) / k,
        "coverage": covered / len(real),
    }


def _radii(features: _Array, k: int) -> _Array:
    """Squared distance of each row to its k-th nearest other row, [N]."""
    # The row itself is among its own distances and is the nearest of all, so the k-th other one is number k from 0.
    radii = np.empty(len(features), np.float64)
    for rows, squared in _squared_distances(features, features):
        # torch finds the few smallest of a row several times as fast as numpy's partition.
        nearest = torch.topk(torch.from_numpy(squared), k + 1, largest=False).values
        radii[rows] = nearest[:, k].numpy()
    return radii


def _squared_distances(x: _Array, y: _Array) -> Iterator[tuple[slice, _Array]]:
    """Squared distances of all pairs, some rows of x at a time."""
    chunk = max(1, _CHUNK_BYTES // (8 * len(y)))
    y_norms = (y * y).sum(1)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        part = x[rows]
        squared = part @ y.T
        squared *= -2.0
        squared += (part * part).sum(1)[:, None]
        squared += y_norms
        yield rows, np.maximum(squared, 0.0, out=squared)
