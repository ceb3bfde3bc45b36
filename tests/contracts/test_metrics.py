"""What every metric promises, run over the table of metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genworker import metrics
from genworker.errors import UsageError
from genworker.metrics.base import Metric, Observed

NUM_CLASSES, DIM, SIZE = 4, 6, 8
CENTERS = np.random.default_rng(7).normal(size=(NUM_CLASSES, DIM)) * 6
# The first number of each metric cannot be hurt by every kind of damage; these are the ones that it is made to see.
SEES = {
    "frechet": {"noise", "lost class", "repeats"},
    "kid": {"noise", "lost class"},
    "prdc": {"noise"},
    "modes": {"lost class"},
    "label-accuracy": {"noise"},
    "cas": {"noise"},
}
DAMAGED = [(name, damage) for name, damages in SEES.items() for damage in sorted(damages)]


def observed(count: int, seed: int, damage: str = "") -> Observed:
    """Images of four classes whose features are clusters and whose pixels are stripes; perhaps damaged ones."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count, dtype=np.int64) % NUM_CLASSES)
    if damage == "lost class":
        labels %= NUM_CLASSES - 1
    shown = random.permutation(labels) if damage == "noise" else labels
    features = CENTERS[shown] + random.normal(size=(count, DIM)) * (4 if damage == "noise" else 1)
    pixels = random.integers(0, 60, (count, SIZE, SIZE, 1), dtype=np.uint8)
    for row, label in enumerate(shown):
        pixels[row, 2 * label : 2 * label + 2] += 150
    classes = ((features[:, None] - CENTERS) ** 2).sum(2).argmin(1).astype(np.int64)
    batch = Observed(pixels, labels, features.astype(np.float32), classes)
    return part(batch, np.arange(count) % (count // 16)) if damage == "repeats" else batch


def part(batch: Observed, rows: np.ndarray | slice) -> Observed:
    assert batch.labels is not None
    assert batch.classes is not None
    return Observed(batch.pixels[rows], batch.labels[rows], batch.features[rows], batch.classes[rows])


def compute(name: str, real: Observed, generated: Observed) -> dict[str, float]:
    metric = metrics.get(name)(NUM_CLASSES)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute()


def test_every_metric_has_a_damage_that_it_sees() -> None:
    """A metric that is added says in this test what it is for."""
    assert SEES.keys() == metrics.METRICS.keys()


@pytest.mark.parametrize("name", metrics.names())
def test_numbers_are_those_that_the_class_names(name: str) -> None:
    """What is computed has the names that the class gives, is finite, and belongs to this metric alone."""
    found = compute(name, observed(240, 0), observed(200, 1))
    assert list(found) == list(metrics.get(name).numbers)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
    assert all(metrics.of_number(number) == name for number in found)
    json.dumps(metrics.get(name)(NUM_CLASSES).settings)


@pytest.mark.parametrize("name", metrics.names())
def test_merging_equals_one_pass(name: str) -> None:
    """Statistics that were collected in pieces and merged give the numbers of one pass, whatever the pieces."""
    real, generated = observed(210, 0), observed(190, 1)
    pieces: list[Metric] = []
    for cut in (slice(0, 1), slice(1, 77), slice(77, None)):
        metric = metrics.get(name)(NUM_CLASSES)
        metric.update(part(real, cut), real=True)
        metric.update(part(generated, cut), real=False)
        pieces.append(metric)
    empty = metrics.get(name)(NUM_CLASSES)
    for piece in (*pieces, metrics.get(name)(NUM_CLASSES)):
        empty.merge(piece)
    assert empty.compute() == pytest.approx(compute(name, real, generated), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", metrics.names())
def test_computing_changes_nothing(name: str) -> None:
    """The same statistics give the same numbers twice, and a copy that was merged from is left as it was."""
    metric, other = metrics.get(name)(NUM_CLASSES), metrics.get(name)(NUM_CLASSES)
    metric.update(observed(120, 0), real=True)
    metric.update(observed(120, 1), real=False)
    first = metric.compute()
    other.merge(metric)
    other.update(observed(120, 2, "noise"), real=False)
    assert metric.compute() == first


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_damage_makes_the_first_number_worse(name: str, damage: str) -> None:
    """Against the same real images, other real ones score better than damaged ones."""
    real = observed(400, 0)
    number, better = next(iter(metrics.get(name).numbers.items()))
    fine, worse = (compute(name, real, observed(400, 1, kind))[number] for kind in ("", damage))
    assert worse > fine if better == "low" else worse < fine


@pytest.mark.parametrize("name", metrics.names())
def test_too_few_images_are_refused(name: str) -> None:
    """Without images of both kinds there is no number, and the message says what was seen."""
    metric = metrics.get(name)(NUM_CLASSES)
    metric.update(observed(60, 0), real=True)
    with pytest.raises(UsageError, match=rf"metric {name}: 60 real and 0 generated images"):
        metric.compute()


def test_names_that_nobody_knows_are_refused() -> None:
    """The message lists the metrics, or the numbers, that there are."""
    with pytest.raises(UsageError, match=r"known: frechet, kid, .* did you mean 'prdc'"):
        metrics.get("prcd")
    with pytest.raises(UsageError, match="known: frechet, kid, kid_error, precision"):
        metrics.of_number("fid")


def test_better_is_low_for_distances_and_high_for_shares() -> None:
    """What decides over the best checkpoint knows the direction."""
    assert not metrics.higher_is_better("frechet")
    assert metrics.higher_is_better("coverage")


def test_what_does_not_apply_is_left_out_or_refused() -> None:
    """Without labels their metrics are left out by default, and refused by name; costly ones come by name only."""
    assert metrics.choose(None, classes=True, labels=True) == ["frechet", "kid", "prdc", "modes", "label-accuracy"]
    assert metrics.choose(None, classes=True, labels=False) == ["frechet", "kid", "prdc", "modes"]
    assert metrics.choose(None, classes=False, labels=False) == ["frechet", "kid", "prdc"]
    assert metrics.choose(["cas"], classes=True, labels=True) == ["cas"]
    assert metrics.choose(["kid"], ["frechet"], classes=True, labels=True) == ["frechet", "kid"]
    with pytest.raises(UsageError, match="'modes' needs classes: the data has no classes"):
        metrics.choose(["modes"], classes=False, labels=False)
    with pytest.raises(UsageError, match="'label-accuracy' needs labels: the generator is not conditional"):
        metrics.choose(None, ["label-accuracy"], classes=True, labels=False)
