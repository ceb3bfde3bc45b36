"""Fréchet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, arXiv:1706.08500).

In: features. Out: one distance, 0 for equal means and covariances. Its name says the extractor, FD-<extractor>: it is not
the FID, which is this distance in the features of one particular Inception network and is comparable with nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from genworker.metrics.base import Better, Need, Observed, require

_Array = npt.NDArray[np.float64]


class Moments:
    """Count, sum and sum of outer products of features, float64: all that a Gaussian needs, and mergeable."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: _Array | None = None
        self._products: _Array | None = None

    def add(self, features: npt.NDArray[np.floating[Any]]) -> None:
        """Take features [n, D]."""
        rows = features.astype(np.float64)
        self._accumulate(len(rows), rows.sum(0), rows.T @ rows)

    def merge(self, other: Moments) -> None:
        """Take over what ``other`` has seen."""
        if other._sum is not None and other._products is not None:
            self._accumulate(other.count, other._sum, other._products)

    def _accumulate(self, count: int, total: _Array, products: _Array) -> None:
        self.count += count
        self._sum = total.copy() if self._sum is None else self._sum + total
        self._products = products.copy() if self._products is None else self._products + products

    def gaussian(self) -> tuple[_Array, _Array]:
        """Mean [D] and unbiased covariance [D, D]; needs two rows."""
        assert self._sum is not None
        assert self._products is not None
        mean = self._sum / self.count
        return mean, (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)


class Frechet:
    """See the module."""

    numbers: ClassVar[Mapping[str, Better]] = {"frechet": "low"}
    needs: ClassVar[frozenset[Need]] = frozenset()
    label: ClassVar[str] = "FD-{extractor}"
    costly: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:  # noqa: ARG002  # all metrics are made alike
        self._moments = {True: Moments(), False: Moments()}

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing besides the features decides the distance."""
        return {}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        self._moments[real].add(batch.features)

    def merge(self, other: Frechet) -> None:
        """Take over what ``other`` has seen."""
        for real, moments in other._moments.items():
            self._moments[real].merge(moments)

    def compute(self) -> dict[str, float]:
        """The distance; raises UsageError below two images of either kind."""
        require(self._moments[True].count, self._moments[False].count, 2, "frechet")
        return {"frechet": frechet_distance(*self._moments[True].gaussian(), *self._moments[False].gaussian())}


def frechet_distance(mean_a: _Array, covariance_a: _Array, mean_b: _Array, covariance_b: _Array) -> float:
    """The distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)."""
    # The symmetric form, so that two symmetric eigenvalue problems do: the square root of A B itself, which is not
    # symmetric, leaves imaginary parts behind where covariances are singular.
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance_b @ root)
    shared = np.sqrt(np.maximum(inner, 0.0)).sum()
    shift = mean_a - mean_b
    distance = shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * shared
    return max(0.0, float(distance))
