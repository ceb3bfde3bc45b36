"""Classes found, and how evenly: mode collapse as a classifier sees it (Metz et al. 2017, arXiv:1611.02163).

In: the class that a classifier takes each image for. Out: the number of real classes that generated images have at least
once, and the reverse Kullback-Leibler divergence, KL(generated || real), of the two class histograms, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from genworker.metrics.base import Better, Need, Observed, require
from genworker.schema import Int64Array


class Modes:
    """See the module."""

    numbers: ClassVar[Mapping[str, Better]] = {"classes_found": "high", "reverse_kl": "low"}
    needs: ClassVar[frozenset[Need]] = frozenset({"classes"})
    label: ClassVar[str] = "classes found"
    costly: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:
        self._counts = {real: np.zeros(num_classes, np.int64) for real in (True, False)}

    @property
    def settings(self) -> dict[str, Any]:
        """How many classes there are to find."""
        return {"num_classes": len(self._counts[True])}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        assert batch.classes is not None
        self.count(batch.classes, real=real)

    def count(self, classes: Int64Array, *, real: bool) -> None:
        """Take the classes of images, int64 [n]."""
        self._counts[real] += np.bincount(classes, minlength=len(self._counts[real]))

    def merge(self, other: Modes) -> None:
        """Take over what ``other`` has seen."""
        for real, counts in other._counts.items():
            self._counts[real] += counts

    def compute(self) -> dict[str, float]:
        """Both numbers; raises UsageError without images of both kinds."""
        real, generated = self._counts[True], self._counts[False]
        require(int(real.sum()), int(generated.sum()), 1, "modes")
        return {
            "classes_found": float(((real > 0) & (generated > 0)).sum()),
            "reverse_kl": reverse_kl(generated, real),
        }


def reverse_kl(generated: Int64Array, real: Int64Array) -> float:
    """KL(generated || real) in nats of two histograms [K]; infinite when a class is generated that is never real."""
    found = generated > 0
    p, q = generated / generated.sum(), real / real.sum()
    with np.errstate(divide="ignore"):
        return float((p[found] * np.log(p[found] / q[found])).sum())
