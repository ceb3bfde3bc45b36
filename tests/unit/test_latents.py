"""Random numbers addressed by sample: a number depends on seed, stream and index, and on nothing else, for ever."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.sampling import latents as module
from genworker.sampling.latents import Stream, labels, latents, normals, raw_words

seeds = st.integers(0, 2**63 - 1)
firsts = st.one_of(st.integers(0, 1000), st.integers(0, 2**48))
counts = st.integers(1, 40)
dims = st.integers(1, 17)
RULES = ["balanced", "uniform", "3"]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """A range of samples and a cut of it: first, count, and where in the range the cut begins and ends."""
    first, count = draw(firsts), draw(counts)
    lower = draw(st.integers(0, count - 1))
    return first, count, lower, draw(st.integers(lower + 1, count))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, cut=cuts(), dim=dims)
def test_a_latent_is_the_same_for_any_range(seed: int, cut: tuple[int, int, int, int], dim: int) -> None:
    """Any cut of a range gives the rows of the whole range, bit for bit."""
    first, count, lower, upper = cut
    whole = latents(seed, first, count, dim)
    np.testing.assert_array_equal(whole[lower:upper], latents(seed, first + lower, upper - lower, dim))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(seed=seeds, cut=cuts(), num_classes=st.integers(4, 23))
def test_a_label_is_the_same_for_any_range(
    rule: str, seed: int, cut: tuple[int, int, int, int], num_classes: int
) -> None:
    """Any cut of a range gives the labels of the whole range, for every rule."""
    first, count, lower, upper = cut
    whole = labels(seed, first, count, num_classes, rule)
    np.testing.assert_array_equal(whole[lower:upper], labels(seed, first + lower, upper - lower, num_classes, rule))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, stream=st.integers(0, 100), first=st.integers(0, 2**62), count=counts, num_words=dims)
def test_words_are_those_of_numpys_generator(seed: int, stream: int, first: int, count: int, num_words: int) -> None:
    """Row i is what numpy's own Philox gives when it is advanced to i times the blocks of a row."""
    blocks = math.ceil(num_words / 4)
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    generator.advance(first * blocks)
    rows = generator.random_raw(count * blocks * 4).reshape(count, -1)[:, :num_words]
    np.testing.assert_array_equal(raw_words(seed, stream, first, count, num_words), rows)


@pytest.mark.parametrize("first", [0, 2**53 - 1, 2**62])
def test_counters_go_on_past_64_bits(first: int) -> None:
    """Rows of many words at a high index, whose counter needs more than 64 bits, still differ and still cut alike."""
    words = raw_words(1, 0, first, 4, 64)
    assert len(np.unique(words)) == words.size
    np.testing.assert_array_equal(words[2:], raw_words(1, 0, first + 2, 2, 64))


def test_words_are_the_pinned_ones() -> None:
    """The words of some indices, written down: a change here changes every dataset there is."""
    assert [hex(word) for word in raw_words(7, Stream.LATENTS, 3, 2, 3).reshape(-1).tolist()] == PINNED_WORDS


def test_normals_are_the_pinned_ones() -> None:
    """The latents of some indices, bit for bit; they must come out alike on every processor."""
    assert [value.hex() for value in latents(7, 1000, 2, 3).astype(float).reshape(-1).tolist()] == PINNED_LATENTS


@pytest.mark.parametrize("rule", ["balanced", "uniform"])
def test_labels_are_the_pinned_ones(rule: str) -> None:
    """The labels of some indices, written down."""
    assert labels(7, 5, 12, 10, rule).tolist() == PINNED_LABELS[rule]


def test_stream_numbers_are_the_pinned_ones() -> None:
    """Stream numbers are part of every dataset's identity, so a new one never takes or moves an old one's."""
    assert (Stream.LATENTS, Stream.LABELS, Stream.TRAINING) == (0, 1, 16)
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)
    assert max(Stream) == Stream.TRAINING, "training phases count upwards from there"


def test_the_quantile_is_the_normal_distributions() -> None:
    """Over the whole range of uniforms, out to the last ones at both ends, the quantile is right to 1e-7."""
    grid = np.concatenate(
        [
            np.linspace(0.001, 0.999, 2001),
            np.array([0.5, 0.075, 0.925, 0.0749999, 0.0750001, np.nextafter(0.5, 0)]),
            0.5 * 2.0 ** -np.arange(1, 53),  # the smallest uniform is 2**-53
            1.0 - 0.5 * 2.0 ** -np.arange(1, 53),
            np.exp(-25.0) * np.linspace(0.9, 1.1, 41),  # where the formula changes, 6.7 deviations out
        ]
    )
    expected = [NormalDist().inv_cdf(p) for p in grid.tolist()]
    np.testing.assert_allclose(module._normal_quantile(grid), expected, rtol=1e-7, atol=1e-7)


def test_the_logarithm_is_right() -> None:
    """The logarithm made of exact operations agrees with the C library's to 1e-12."""
    grid = np.concatenate([2.0 ** -np.arange(1.0, 54.0), np.linspace(1e-9, 1 - 1e-9, 5001), np.full(1, 0.5**0.5)])
    np.testing.assert_allclose(module._log(grid), np.log(grid), rtol=1e-12, atol=1e-15)


def test_normals_are_finite_symmetric_and_of_unit_variance() -> None:
    """Mean, variance, skewness and kurtosis of a million values are those of the standard normal distribution."""
    values = normals(11, Stream.LATENTS, 0, 20_000, 50).astype(np.float64).reshape(-1)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 4e-3  # 4 standard errors
    assert abs(values.var() - 1) < 6e-3
    assert abs((values**3).mean()) < 1.6e-2
    assert abs((values**4).mean() - 3) < 4e-2
    assert 4.5 < np.abs(values).max() < 6.5


def test_dimensions_and_neighbours_are_uncorrelated() -> None:
    """Neither two dimensions of a sample nor two samples that follow each other are correlated."""
    values = normals(12, Stream.LATENTS, 0, 40_000, 6)
    between_dims = np.corrcoef(values.T) - np.eye(6)
    between_rows = [np.corrcoef(values[:-1, d], values[1:, d])[0, 1] for d in range(6)]
    assert np.abs(between_dims).max() < 0.025
    assert np.abs(between_rows).max() < 0.025


def test_seeds_streams_and_indices_differ() -> None:
    """Another seed, another stream and another index give other words."""
    rows = [
        raw_words(seed, stream, first, 1, 4).tobytes()
        for seed in (0, 1, 2**63 - 1)
        for stream in (*Stream, 17, 32)
        for first in (0, 1, 2**40)
    ]
    assert len(set(rows)) == len(rows)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, block=st.integers(0, 2**40), num_classes=st.integers(1, 50))
def test_balanced_labels_hold_each_class_once_in_every_block(seed: int, block: int, num_classes: int) -> None:
    """Every aligned run of num_classes samples holds each class once."""
    run = labels(seed, block * num_classes, num_classes, num_classes, "balanced")
    assert run.dtype == np.int64
    assert sorted(run.tolist()) == list(range(num_classes))


def test_balanced_labels_come_in_random_order() -> None:
    """At every position of a block each class stands equally often."""
    runs = labels(5, 0, 40_000, 10, "balanced").reshape(-1, 10)
    for position in range(10):
        counts_here = np.bincount(runs[:, position], minlength=10)
        assert np.abs(counts_here - 400).max() < 100  # 5 standard deviations


@pytest.mark.parametrize("num_classes", [1, 3, 10, 1000])
def test_uniform_labels_are_uniform(num_classes: int) -> None:
    """Independent labels take every class about equally often and nothing outside."""
    drawn = labels(5, 0, 200_000, num_classes, "uniform")
    histogram = np.bincount(drawn, minlength=num_classes)
    assert len(histogram) == num_classes
    expected = 200_000 / num_classes
    assert np.abs(histogram - expected).max() < 6 * math.sqrt(expected)


def test_a_class_number_is_every_samples_label() -> None:
    """With a class number as the rule every label is that class."""
    assert labels(1, 10**12, 5, 10, "8").tolist() == [8] * 5


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 64])
def test_latents_have_the_shape_asked_for(dim: int) -> None:
    """Latents are float32, one row per sample, also across the blocks in which they are computed."""
    values = latents(1, 0, 700, dim)
    assert (values.shape, values.dtype) == ((700, dim), np.float32)
    np.testing.assert_array_equal(values[650], latents(1, 650, 1, dim)[0])


PINNED_WORDS = [
    "0x712a540f349a5c44",
    "0xd8359a30ddb112e4",
    "0xa2e4b8e6a74ce322",
    "0xfc79c5a0f524890",
    "0x86645bb128286770",
    "0xaeeb30ed8eeae4df",
]
PINNED_LATENTS = [
    "-0x1.7715660000000p-1",
    "-0x1.04303c0000000p-1",
    "0x1.c4a1e00000000p-3",
    "-0x1.9465d80000000p+0",
    "-0x1.2e02580000000p+0",
    "-0x1.753ef00000000p+0",
]
PINNED_LABELS = {
    "balanced": [5, 4, 8, 0, 7, 9, 0, 5, 3, 4, 1, 8],
    "uniform": [4, 7, 0, 4, 7, 6, 0, 6, 4, 4, 3, 8],
}
