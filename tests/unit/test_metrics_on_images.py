"""Metrics of real images that are damaged more and more: every kind of damage makes the numbers worse, step by step."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter

from genworker import metrics
from genworker.metrics.classifier import ClassifierConfig, accuracy, train_classifier
from genworker.metrics.extractor import Extractor, random_extractor, train_extractor
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.schema import Int64Array, Pixels, SampleBatch

pytestmark = pytest.mark.slow

TRAIN, REFERENCE, COUNT = 3_000, 1_000, 1_000


def shipped(first: int, count: int) -> SampleBatch:
    return models.shipped_source(TRAIN + REFERENCE + COUNT).read(np.arange(first, first + count, dtype=np.int64))


@cache
def extractor(kind: str) -> Extractor:
    source = models.shipped_source(TRAIN + REFERENCE + COUNT)
    if kind == "random":
        return random_extractor(source.read, TRAIN, source.schema)
    return train_extractor(source.read, TRAIN, source.schema, ClassifierConfig(images=5 * TRAIN))


def blurred(pixels: Pixels, labels: Int64Array, radius: float) -> tuple[Pixels, Int64Array]:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(each[:, :, 0]).filter(blur))[:, :, None] for each in pixels]), labels


def noisy(pixels: Pixels, labels: Int64Array, sigma: float) -> tuple[Pixels, Int64Array]:
    noise = np.random.default_rng(0).normal(size=pixels.shape) * sigma
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8), labels


def fewer_classes(pixels: Pixels, labels: Int64Array, kept: float) -> tuple[Pixels, Int64Array]:
    rows = np.resize(np.flatnonzero(labels < kept), len(labels))
    return pixels[rows], labels[rows]


def repeated(pixels: Pixels, labels: Int64Array, times: float) -> tuple[Pixels, Int64Array]:
    rows = np.arange(len(labels)) % (len(labels) // int(times))
    return pixels[rows], labels[rows]


# Damage -> what does it, its degrees from none on, and the numbers that have to see it.
DAMAGES: dict[str, tuple[Callable[..., tuple[Pixels, Int64Array]], list[float], list[str]]] = {
    "blur": (blurred, [0, 0.6, 1.2, 2.5], ["frechet", "kid", "recall"]),
    "noise": (noisy, [0, 15, 40, 100], ["frechet", "kid", "density", "coverage"]),
    "fewer classes": (
        fewer_classes,
        [10, 7, 4, 1],
        ["frechet", "kid", "recall", "coverage", "classes_found", "reverse_kl"],
    ),
    "repeats": (repeated, [1, 8, 40, 200], ["frechet", "kid", "recall", "coverage"]),
}


def numbers_of(damage: str, degree: float, kind: str) -> dict[str, float]:
    """All cheap numbers of so many damaged images beside undamaged other ones."""
    change, *_ = DAMAGES[damage]
    real, others = shipped(TRAIN, REFERENCE), shipped(TRAIN + REFERENCE, COUNT)
    assert others.labels is not None
    eye = extractor(kind)
    seen = eye.observe(real.pixels, real.labels)
    made = eye.observe(*change(others.pixels, others.labels, degree))
    found: dict[str, float] = {}
    for name in metrics.choose(None, classes=bool(eye.num_classes), labels=bool(eye.num_classes)):
        metric = metrics.get(name)(eye.num_classes)
        metric.update(seen, real=True)
        metric.update(made, real=False)
        found |= metric.compute()
    return found


@pytest.mark.parametrize("kind", ["classifier", "random"])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_more_damage_is_worse(damage: str, kind: str) -> None:
    """No step of damage improves a number that should see it, and all of it makes the number worse."""
    _, degrees, wanted = DAMAGES[damage]
    steps = [numbers_of(damage, degree, kind) for degree in degrees]
    for number in wanted:
        if number in steps[0]:
            sign = -1 if metrics.higher_is_better(number) else 1
            values = sign * np.array([found[number] for found in steps])
            # A share may have reached 0 before; a hundredth is noise, whose sign depends on the processor.
            assert np.all(np.diff(values) >= -0.01 * (values[-1] - values[0])), f"{number}: {values}"
            assert values[-1] > values[0], f"{number}: {values}"


def test_real_images_score_at_the_floor() -> None:
    """Other real images are as good as it gets: a distance near zero, shares near what equal distributions give."""
    found = numbers_of("noise", 0, "classifier")
    assert abs(found["kid"]) < 4 * found["kid_error"]
    assert found["classes_found"] == 10
    assert found["reverse_kl"] < 0.02
    assert found["density"] == pytest.approx(1.0, abs=0.1)
    assert found["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.03)
    assert found["label_accuracy"] > 0.8


def test_a_classifier_that_saw_shifts_knows_moved_images_and_does_not_rely_on_single_pixels() -> None:
    """Trained with a pixel that tells the class, only the one that saw its images moved learns what they show."""
    source = models.shipped_source(TRAIN + REFERENCE)
    real = source.read(np.arange(TRAIN, TRAIN + REFERENCE))
    assert real.labels is not None

    def traced(indices: Int64Array) -> SampleBatch:
        batch = source.read(indices)
        assert batch.labels is not None
        pixels = batch.pixels.copy()
        pixels[np.arange(len(pixels)), 0, 2 * batch.labels + 3] = 255
        return dataclasses.replace(batch, pixels=pixels)

    found = {}
    for max_shift in (0.0, 1 / 16):
        config = ClassifierConfig(images=5 * TRAIN, max_shift=max_shift)
        network = train_classifier(traced, TRAIN, source.schema, config)
        found[max_shift] = accuracy(network, [(real.pixels, real.labels)])
    assert found[1 / 16] > found[0.0] + 0.1, found


def test_an_extractor_is_the_same_when_it_is_made_again() -> None:
    """Equal data and seed give equal bytes, so that cards of two evaluations agree; another seed gives others."""
    source = models.shipped_source(400)
    config = ClassifierConfig(images=800, max_shift=1 / 16)
    first, again = (train_extractor(source.read, 400, source.schema, config) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    other = train_extractor(source.read, 400, source.schema, config.model_copy(update={"seed": 1}))
    assert other.digest != first.digest
    assert (
        random_extractor(source.read, 400, source.schema).digest
        == random_extractor(source.read, 400, source.schema).digest
    )
