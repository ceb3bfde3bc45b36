"""Classification accuracy score: what a classifier that never saw a real image is worth on real ones.

In: generated images with the labels they were made for, real images with theirs. Out: the accuracy on the real images of a
classifier trained on the generated ones alone (Ravuri and Vinyals 2019, arXiv:1905.10887; "train on synthetic, test on
real"). Its floor, the same with real training images in place of the generated ones, stands beside it.

Both classifiers see their images moved by up to a sixteenth of a side, anew each time. Generators leave traces of the class at
fixed pixels that no eye sees: a classifier that may rely on them is right about 99% of new generated images and learns less of
what is real, so its accuracy would tell of the traces and not of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from genworker.metrics.base import Better, Need, Observed, require
from genworker.metrics.classifier import ClassifierConfig, accuracy, train_classifier
from genworker.schema import ImageSchema, Int64Array, Pixels, SampleBatch


class ClassificationAccuracy:
    """See the module; it keeps the pixels of all images, and takes a minute or more to compute."""

    numbers: ClassVar[Mapping[str, Better]] = {"cas": "high"}
    needs: ClassVar[frozenset[Need]] = frozenset({"classes", "labels"})
    label: ClassVar[str] = "accuracy, trained on synthetic"
    costly: ClassVar[bool] = True

    def __init__(self, num_classes: int, config: ClassifierConfig | None = None) -> None:
        self._num_classes = num_classes
        self._config = config or ClassifierConfig(seed=1, max_shift=1 / 16)  # not the extractor's seed
        self._parts: dict[bool, list[tuple[Pixels, Int64Array]]] = {True: [], False: []}

    @property
    def settings(self) -> dict[str, Any]:
        """How the classifier is trained."""
        return self._config.model_dump(mode="json")

    def update(self, batch: Observed, *, real: bool) -> None:
        """Take a batch; see `base.Metric`."""
        assert batch.labels is not None
        self._parts[real].append((batch.pixels, batch.labels))

    def merge(self, other: ClassificationAccuracy) -> None:
        """Take over what ``other`` has seen."""
        for real, parts in other._parts.items():
            self._parts[real] += parts

    def compute(self) -> dict[str, float]:
        """The accuracy in [0, 1]; raises UsageError below one batch of generated images."""
        counts = {real: sum(len(labels) for _, labels in parts) for real, parts in self._parts.items()}
        require(counts[True], counts[False], 2, "cas")
        pixels = np.concatenate([pixels for pixels, _ in self._parts[False]])
        labels = np.concatenate([labels for _, labels in self._parts[False]])
        _, height, width, channels = pixels.shape
        schema = ImageSchema(channels=channels, height=height, width=width, num_classes=self._num_classes)
        network = train_classifier(
            lambda indices: SampleBatch(indices, pixels[indices], labels[indices]), len(pixels), schema, self._config
        )
        return {"cas": accuracy(network, iter(self._parts[True]))}
