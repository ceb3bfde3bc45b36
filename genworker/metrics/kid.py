"""Kernel distance of two sets of features: the squared maximum mean discrepancy with a cubic kernel, unbiased.

In: features. Out: ``kid``, whose expectation does not depend on the number of images, so that it may be negative, and
``kid_error``, its standard error over blocks of images. Binkowski et al. 2018, arXiv:1801.01401.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from genworker.metrics.base import Better, FeatureLists, Need, Observed

_CHUNK = 1024
_BLOCKS = 10
_Array = npt.NDArray[np.float64]


class KernelDistance:
    """See the module; it keeps all features."""

    numbers: ClassVar[Mapping[str, Better]] = {"kid": "low", "kid_error": "low"}
    needs: ClassVar[frozenset[Need]] = frozenset()
    label: ClassVar[str] = "KD-{extractor}"
    costly: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:  # noqa: ARG002  # all metrics are made alike
        self._lists = FeatureLists()

    @property
    def settings(self) -> dict[str, Any]:
        """The kernel, and the blocks of the standard error."""
        return {"kernel": "(x.y / D + 1)^3", "error_blocks": _BLOCKS}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        self._lists.update(batch, real=real)

    def merge(self, other: KernelDistance) -> None:
        """Take over what ``other`` has seen."""
        self._lists.merge(other._lists)

    def compute(self) -> dict[str, float]:
        """The distance over all pairs, and its error; raises UsageError below 20 images of either kind."""
        real, generated = self._lists.both("kid", 2 * _BLOCKS)
        parts = [
            squared_discrepancy(x, y)
            for x, y in zip(np.array_split(real, _BLOCKS), np.array_split(generated, _BLOCKS), strict=True)
        ]
        error = float(np.std(parts, ddof=1)) / _BLOCKS**0.5
        return {"kid": squared_discrepancy(real, generated), "kid_error": error}


def squared_discrepancy(x: _Array, y: _Array) -> float:
    """The unbiased estimate from x [N, D] and y [M, D]; an image is never paired with itself."""
    within = [
        (_kernel_sum(rows, rows) - float(_kernel((rows * rows).sum(1), rows.shape[1]).sum()))
        / (len(rows) * (len(rows) - 1))
        for rows in (x, y)
    ]
    return sum(within) - 2.0 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel(products: _Array, dim: int) -> _Array:
    base = products / dim
    base += 1.0
    return base * base * base  # a power is ten times as slow


def _kernel_sum(x: _Array, y: _Array) -> float:
    # In chunks: the matrix of 50,000 x 50,000 pairs has 20 GB.
    return sum(float(_kernel(x[i : i + _CHUNK] @ y.T, x.shape[1]).sum()) for i in range(0, len(x), _CHUNK))
