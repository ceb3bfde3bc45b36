"""The order of training images: every image once an epoch, a function of the seed, and few blocks of storage at a time."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.sources.base import Blocks
from genworker.training.loader import rank_slice
from genworker.training.order import Order, held_out_indices, permutation

if TYPE_CHECKING:
    from genworker.schema import Int64Array

numbers = st.integers(0, 2**40)


def blocks_of(sizes: list[int] | Int64Array, window: int) -> Blocks:
    return Blocks(np.cumsum(sizes, dtype=np.int64), window)


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    """Length, seed and settings of an order, of data in blocks of any sizes (empty ones too) with and without a hold-out."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=60).filter(lambda sizes: sum(sizes) > 1))
    length = sum(sizes)
    held_out = held_out_indices(length, draw(st.sampled_from([0.0, 0.1, 0.4])))
    unit = draw(st.integers(1, 3))
    return (
        length,
        draw(numbers),
        {
            "blocks": blocks_of(sizes, draw(st.integers(1, 20))),
            "held_out": held_out,
            "unit": unit,
            "batch_size": unit * draw(st.integers(1, max(1, (length - len(held_out)) // unit))),
        },
    )


@given(length=st.integers(1, 300), seed=numbers, epoch=numbers)
def test_a_permutation_holds_every_image_once(length: int, seed: int, epoch: int) -> None:
    """An epoch's order is a permutation, whatever the seed and the epoch."""
    assert sorted(permutation(length, seed, epoch).tolist()) == list(range(length))


@given(orders(), st.integers(0, 2**30))
@settings(deadline=None)
def test_every_epoch_draws_every_image_once(order: tuple[int, int, dict[str, Any]], epoch: int) -> None:
    """Whatever the blocks, the batch and the hold-out: all images that are not held out are drawn once an epoch."""
    length, seed, options = order
    made = Order(length, seed, **options)
    first = epoch * made.num_images
    drawn = made.indices(np.arange(first, first + made.num_images, dtype=np.int64))
    assert sorted(drawn.tolist()) == sorted(set(range(length)) - set(options["held_out"].tolist()))


@given(orders(), st.data())
@settings(deadline=None)
def test_a_draw_is_a_function_of_its_number(order: tuple[int, int, dict[str, Any]], data: st.DataObject) -> None:
    """Any stretch of draws, across any number of epochs and in any sequence, gives what each draw gives alone."""
    length, seed, options = order
    draws = data.draw(st.lists(st.integers(0, 5 * length), max_size=20))
    together = Order(length, seed, **options).indices(np.array(draws, np.int64))
    alone = [Order(length, seed, **options).indices(np.array([draw]))[0] for draw in draws]
    assert together.tolist() == alone


@given(length=st.integers(2, 200), seed=numbers, window=st.integers(1, 20), data=st.data())
def test_data_without_blocks_or_in_few_keeps_the_full_permutation(
    length: int, seed: int, window: int, data: st.DataObject
) -> None:
    """No blocks, or no more than can be held: an epoch is the one permutation that it has always been."""
    cuts = data.draw(st.lists(st.integers(0, length), max_size=window - 1).map(sorted))
    blocks = Blocks(np.array([*cuts, length], np.int64), window)
    draws = np.arange(3 * length)
    expected = np.concatenate([permutation(length, seed, epoch) for epoch in range(3)])
    assert np.array_equal(Order(length, seed).indices(draws), expected)
    assert np.array_equal(Order(length, seed, blocks=blocks, batch_size=2).indices(draws), expected)
    assert Order(length, seed, blocks=blocks).look_ahead == 0


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """A checkpoint of last year resumes in the same order: these numbers must never change."""
    assert permutation(8, 1, 0).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]
    assert permutation(8, 1, 1).tolist() == [3, 5, 2, 1, 7, 0, 4, 6]
    assert permutation(8, 2, 0).tolist() == [6, 4, 1, 2, 0, 3, 5, 7]
    assert held_out_indices(100, 0.05).tolist() == HELD_OUT
    in_blocks = Order(24, 1, blocks=blocks_of([3] * 8, 2), batch_size=4, held_out=np.array([5]), unit=2).indices(
        np.arange(46)
    )
    assert in_blocks.tolist() == IN_BLOCKS


HELD_OUT = [18, 28, 48, 73, 84]
# fmt: off
IN_BLOCKS = [
    13, 20, 12, 4, 14, 3, 6, 16, 7, 15, 8, 17, 1, 22, 0, 23, 2, 21, 18, 11, 19, 10, 9,
    10, 22, 11, 23, 9, 21, 17, 0, 16, 1, 15, 2, 6, 14, 8, 12, 7, 13, 4, 20, 3, 18, 19,
]
# fmt: on


@pytest.mark.parametrize("share", [0.02, 0.1, 0.49])
@pytest.mark.parametrize("length", [100, 999, 100_000, 10**9])
def test_the_hold_out_is_spread_over_the_data(length: int, share: float) -> None:
    """One image of each of so many equal stretches, at most 1,000, the same for every run."""
    held_out = held_out_indices(length, share)
    assert len(held_out) == min(int(length * share), 1000)
    edges = np.arange(len(held_out) + 1) * length // len(held_out)
    assert (held_out >= edges[:-1]).all()
    assert (held_out < edges[1:]).all()
    assert np.array_equal(held_out, held_out_indices(length, share))


@pytest.mark.parametrize("labels", [np.arange(50_000) // 5_000, np.arange(50_000) % 10], ids=["sorted", "alternating"])
def test_the_hold_out_covers_all_classes(labels: Int64Array) -> None:
    """Of data sorted by class, and of data in which classes alternate, each of ten classes has its part of the hold-out."""
    counts = np.bincount(labels[held_out_indices(len(labels), 0.02)], minlength=10)
    assert counts.min() >= 60
    assert counts.sum() == 1000


def test_a_share_of_nothing_holds_nothing_out() -> None:
    """Share 0, or a share of less than one image, gives an empty hold-out and the order of all images."""
    assert held_out_indices(1000, 0.0).dtype == np.int64
    assert len(held_out_indices(1000, 0.0)) == len(held_out_indices(49, 0.02)) == 0
    with_none = Order(100, 3, held_out=held_out_indices(100, 0.0)).indices(np.arange(300))
    assert np.array_equal(with_none, Order(100, 3).indices(np.arange(300)))


def fetches(blocks: Int64Array, capacity: int) -> int:
    """How many blocks a cache of so many, least recently used first out, fetches for a series of reads."""
    cache: OrderedDict[int, None] = OrderedDict()
    fetched = 0
    for block in blocks.tolist():
        if block not in cache:
            fetched += 1
            cache[block] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
        cache.move_to_end(block)
    return fetched


@pytest.mark.parametrize("batch_size", [64, 100, 97])
@pytest.mark.parametrize("window", [1, 4, 16, 50])
def test_a_block_is_fetched_once_an_epoch(window: int, batch_size: int) -> None:
    """With room for twice the window, blocks are fetched once each, and those that two lanes share at most twice."""
    sizes = np.random.default_rng(0).integers(20, 60, 300)
    blocks = blocks_of(sizes, window)
    order = Order(int(sizes.sum()), 5, blocks=blocks, batch_size=batch_size)
    for epoch in range(2):
        drawn = order.indices(np.arange(order.num_images) + epoch * order.num_images)
        touched = np.searchsorted(blocks.ends, drawn, side="right")
        assert len(np.unique(touched)) == 300
        assert fetches(touched, 2 * window) <= 300 + min(window, 64)


@pytest.mark.parametrize("batch_size", [64, 100])
def test_a_batch_mixes_the_blocks_of_a_window(batch_size: int) -> None:
    """Neighbours in storage are spread out: a batch holds images of nearly as many blocks as a window has."""
    blocks = blocks_of([50] * 400, 20)
    order = Order(20_000, 5, blocks=blocks, batch_size=batch_size)
    drawn = order.indices(np.arange(20_000 // batch_size * batch_size)).reshape(-1, batch_size)
    distinct = [len(np.unique(row // 50)) for row in drawn]
    assert np.mean(distinct) >= 0.75 * 20
    other = order.indices(np.arange(20_000, 40_000))
    assert not np.array_equal(other[: drawn.size], drawn.reshape(-1))


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_each_of_many_workers_reads_its_own_blocks(world_size: int) -> None:
    """All workers together fetch each block about once, not each of them all."""
    blocks = blocks_of([40] * 640, 32)
    order = Order(640 * 40, 5, blocks=blocks, batch_size=64)
    batches = np.arange(640 * 40).reshape(-1, 64)
    fetched = 0
    for rank in range(world_size):
        drawn = order.indices(batches[:, rank_slice(64, rank, world_size)].reshape(-1))
        fetched += fetches(np.searchsorted(blocks.ends, drawn, side="right"), 64)
    assert 640 <= fetched <= 1.2 * 640


@pytest.mark.parametrize("unit", [2, 4])
def test_images_judged_together_come_from_different_blocks(unit: int) -> None:
    """Packs of neighbours in a batch (PacGAN) hold no two images of one block, but for a few at the end of an epoch."""
    blocks = blocks_of([40] * 640, 32)
    order = Order(640 * 40, 5, blocks=blocks, batch_size=64, unit=unit)
    packs = order.indices(np.arange(640 * 40)).reshape(-1, unit) // 40
    alike = [len(set(pack)) < unit for pack in packs.tolist()]
    assert np.mean(alike) < 0.02


@pytest.mark.slow
def test_an_epoch_of_a_hundred_million_images_needs_little_memory() -> None:
    """The order is worked out a window at a time: a fifth of a byte for each image."""
    blocks = blocks_of([1000] * 100_000, 32)
    tracemalloc.start()
    try:
        order = Order(10**8, 7, blocks=blocks, batch_size=256, held_out=held_out_indices(10**8, 0.02))
        assert order.num_images == 10**8 - 1000
        seen = [order.indices(np.arange(first, first + 256)) for first in range(0, 200_000, 256)]
        far = order.indices(np.arange(10**8 + 1000, 10**8 + 1256))  # in the next epoch
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    drawn = np.concatenate(seen)
    assert len(np.unique(drawn)) == len(drawn)
    assert len(np.unique(far)) == 256
    assert peak < 10**8 // 5  # the permutation alone would take 800 MB


def test_blocks_shuffle_anew_every_epoch() -> None:
    """Two epochs, and two seeds, open the blocks in orders of their own."""
    blocks = blocks_of([10] * 200, 4)
    firsts = []
    for seed, epoch in itertools.product((1, 2), (0, 1)):
        order = Order(2000, seed, blocks=blocks, batch_size=4)
        drawn = order.indices(np.arange(2000) + 2000 * epoch) // 10
        firsts.append(tuple(dict.fromkeys(drawn.tolist())))
    assert len(set(firsts)) == 4
