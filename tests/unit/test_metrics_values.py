"""Values that metrics must have: closed forms, brute force, published examples; and cards."""

from __future__ import annotations

import numpy as np
import pytest

from genworker.errors import UsageError
from genworker.metrics.cards import Card, Score, check_comparable
from genworker.metrics.frechet import Moments, frechet_distance
from genworker.metrics.kid import squared_discrepancy
from genworker.metrics.modes import reverse_kl
from genworker.metrics.prdc import prdc


def gaussian(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) + shift


def test_frechet_distance_of_known_gaussians() -> None:
    """Equal ones are at 0, a shift counts squared, and for diagonal covariances the deviations are compared."""
    mean, scales = np.zeros(3), np.array([1.0, 4.0, 9.0])
    assert frechet_distance(mean, np.diag(scales), mean, np.diag(scales)) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(mean, np.eye(3), mean + 2, np.eye(3)) == pytest.approx(12)
    # sum of (sqrt(a) - sqrt(b))^2
    assert frechet_distance(mean, np.diag(scales), mean, np.eye(3)) == pytest.approx(0 + 1 + 4)


def test_frechet_distance_does_not_depend_on_the_axes() -> None:
    """Turning both sets of features turns nothing in the distance, also for covariances that do not commute."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(2, 5, 5))
    a, b = roots @ roots.transpose(0, 2, 1)
    turn, _ = np.linalg.qr(random.normal(size=(5, 5)))
    means = random.normal(size=(2, 5))
    before = frechet_distance(means[0], a, means[1], b)
    after = frechet_distance(turn @ means[0], turn @ a @ turn.T, turn @ means[1], turn @ b @ turn.T)
    assert after == pytest.approx(before)
    assert frechet_distance(means[1], b, means[0], a) == pytest.approx(before)


def test_frechet_distance_of_singular_covariances() -> None:
    """Features that never vary, as a dead unit's, do not disturb it."""
    a, b = np.diag([1.0, 0.0, 2.0]), np.diag([1.0, 0.0, 0.0])
    assert frechet_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(2.0)


def test_moments_are_those_of_numpy() -> None:
    """Mean and covariance of all rows, also far from the origin."""
    rows = gaussian(500, 4, 0, shift=1000.0)
    moments = Moments()
    for piece in np.array_split(rows, 7):
        moments.add(piece)
    mean, covariance = moments.gaussian()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), atol=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    """Over many small draws of one distribution it is 0 on average, for few images as for more."""
    for count in (4, 16):
        values = [
            squared_discrepancy(gaussian(count, 3, 2 * seed), gaussian(count, 3, 2 * seed + 1)) for seed in range(400)
        ]
        error = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values)) < 4 * error


def test_kernel_distance_by_hand() -> None:
    """The definition, pair by pair."""
    x, y = gaussian(5, 2, 0), gaussian(4, 2, 1, shift=1.0)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 2 + 1) ** 3)

    expected = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    expected += np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert squared_discrepancy(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_is_what_its_definition_says(k: int) -> None:
    """Against a direct transcription of the definitions with all distances at once."""
    real, generated = gaussian(90, 3, 0), gaussian(70, 3, 1, shift=0.4)

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    real_radii = np.sort(distances(real, real), axis=1)[:, k]
    generated_radii = np.sort(distances(generated, generated), axis=1)[:, k]
    between = distances(real, generated)
    inside = between < real_radii[:, None]
    assert prdc(real, generated, k) == pytest.approx(
        {
            "precision": inside.any(0).mean(),
            "recall": (between < generated_radii).any(1).mean(),
            "density": inside.sum(0).mean() / k,
            "coverage": inside.any(1).mean(),
        }
    )


def test_prdc_of_copies() -> None:
    """The real images themselves lie in every neighbourhood of theirs."""
    real = gaussian(200, 4, 0)
    assert prdc(real, real.copy(), 5) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": pytest.approx(1.0),
        "coverage": 1.0,
    }


def test_prdc_of_equal_distributions() -> None:
    """Density is 1 and coverage 1 - 2^-k on average, in any space: the distances of 2N draws come in a random order."""
    found = [prdc(gaussian(400, 20, 2 * seed), gaussian(400, 20, 2 * seed + 1), 5) for seed in range(20)]
    means = {name: np.mean([numbers[name] for numbers in found]) for name in found[0]}
    assert means["density"] == pytest.approx(1.0, abs=0.03)
    assert means["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.005)
    assert means["precision"] == pytest.approx(means["recall"], abs=0.03)


def test_reverse_divergence() -> None:
    """Zero for equal histograms, log of the share for one mode of ten, infinite for a class that is never real."""
    real = np.full(10, 50, np.int64)
    assert reverse_kl(np.full(10, 3, np.int64), real) == 0
    assert reverse_kl(np.eye(10, dtype=np.int64)[0] * 7, real) == pytest.approx(np.log(10))
    assert reverse_kl(real, np.where(np.arange(10) < 9, real, 0)) == np.inf


def card(**changes: object) -> Card:
    values = {
        "metric": "frechet",
        "label": "FD-classifier-64",
        "extractor": "classifier-64",
        "extractor_digest": "ab",
        "reference": "cd",
        "split": "test",
        "num_real": 10_000,
        "num_generated": 2_000,
        "image_size": "28x28x1",
        "dtype": "float32",
    }
    return Card.parse(values | changes, origin="test")


def test_like_scores_are_compared() -> None:
    """Numbers made alike can be subtracted."""
    assert Score({"frechet": 3.0}, card()).minus(Score({"frechet": 1.0}, card())) == {"frechet": 2.0}


@pytest.mark.parametrize("field", sorted(set(Card.model_fields) - {"settings", "num_real", "num_generated"}))
def test_unlike_cards_are_refused(field: str) -> None:
    """One difference in what a score was made with is enough, and the message names it."""
    with pytest.raises(UsageError, match=f"{field}: .* and 'other'"):
        check_comparable(card(), card(**{field: "other"}))


def test_other_numbers_of_images_are_refused() -> None:
    """More samples alone make a distance smaller."""
    with pytest.raises(UsageError, match=r"num_generated: 2000 and 50000"):
        Score({"frechet": 3.0}, card()).minus(Score({"frechet": 1.0}, card(num_generated=50_000)))
    with pytest.raises(UsageError, match=r"settings: .*k.: 5.* and .*k.: 3"):
        check_comparable(card(settings={"k": 5}), card(settings={"k": 3}))
