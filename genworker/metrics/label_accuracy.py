"""Label accuracy: whether a class-conditional generator makes what it was asked for.

In: the label that each image was made for, and the class that a classifier takes it for. Out: the share of generated images
where both agree. The classifier's own errors bound it: the same share of real images stands beside it as the floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from genworker.metrics.base import Better, Need, Observed, require


class LabelAccuracy:
    """See the module; real images are counted, but do not decide the number."""

    numbers: ClassVar[Mapping[str, Better]] = {"label_accuracy": "high"}
    needs: ClassVar[frozenset[Need]] = frozenset({"classes", "labels"})
    label: ClassVar[str] = "label accuracy"
    costly: ClassVar[bool] = False

    def __init__(self, num_classes: int) -> None:  # noqa: ARG002  # all metrics are made alike
        self._right = 0
        self._seen = {True: 0, False: 0}

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing besides the classifier decides the share."""
        return {}

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        assert batch.labels is not None
        assert batch.classes is not None
        self._seen[real] += len(batch)
        if not real:
            self._right += int((batch.classes == batch.labels).sum())

    def merge(self, other: LabelAccuracy) -> None:
        """Take over what ``other`` has seen."""
        self._right += other._right
        for real, seen in other._seen.items():
            self._seen[real] += seen

    def compute(self) -> dict[str, float]:
        """The share in [0, 1]; raises UsageError without images of both kinds."""
        require(self._seen[True], self._seen[False], 1, "label-accuracy")
        return {"label_accuracy": self._right / self._seen[False]}
