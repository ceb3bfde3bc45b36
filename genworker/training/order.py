"""Which image each draw of a run takes, and which images are never drawn.

In: a seed, the number of images, and perhaps the blocks in which they are stored. Out: image indices by the number of the draw.
Nothing here depends on the number of workers; of data in blocks, no more than a window is ever worked out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import numpy as np

from genworker.sampling.latents import Stream, raw_words
from genworker.training.block_order import BlockLayout, BlockOrder

if TYPE_CHECKING:
    from genworker.schema import Int64Array
    from genworker.sources.base import Blocks

_MAX_HELD_OUT = 1000
_HOLDOUT_KEY = 0  # not the run's seed: runs that differ in it are measured on the same images
_KEPT_EPOCHS = 2  # a batch may lie across the end of one, and a look ahead in the next


def held_out_indices(length: int, share: float) -> Int64Array:
    """The images of a source that are never trained on: ``share`` of ``length``, rounded down, at most 1,000.

    One of each of so many equal stretches of the source, so that all classes of sorted data are covered; where in its
    stretch is drawn, so that data in which the classes alternate is covered too.

    Returns:
        int64 [n], rising; empty for share 0.
    """
    count = min(int(length * share), _MAX_HELD_OUT)
    if not count:
        return np.empty(0, np.int64)
    edges = np.arange(count + 1, dtype=np.int64) * length // count
    words = raw_words(_HOLDOUT_KEY, Stream.HOLDOUT, 0, 1, count)[0]
    offsets: Int64Array = (words % np.diff(edges).astype(np.uint64)).astype(np.int64)
    return edges[:-1] + offsets


def permutation(length: int, seed: int, epoch: int) -> Int64Array:
    """The order of the ``length`` images of a source in one epoch, int64 [length].

    Made by sorting Philox words, not by numpy's ``permutation``: numpy keeps the former the same between its versions, and
    a resumed run may meet another version.
    """
    words = raw_words(seed, Stream.ORDER, epoch, 1, length)[0]
    return np.argsort(words, kind="stable").astype(np.int64)


class _Epoch(Protocol):
    def at(self, positions: Int64Array) -> Int64Array: ...


class _Whole:
    """An epoch as one permutation, for data of which any image is as near as any other."""

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        self._order = permutation(length, seed, epoch)

    def at(self, positions: Int64Array) -> Int64Array:
        return self._order[positions]


class Order:
    """Which image each draw takes: draw d is position d % num_images of the order of epoch d // num_images.

    Attributes:
        num_images: images of one epoch, each drawn once in it; those held out are not among them.
        look_ahead: how many draws ahead it pays to have images fetched; 0 where they are not in blocks, or few enough
            blocks that all fit.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        held_out: Int64Array | None = None,
        blocks: Blocks | None = None,
        batch_size: int = 1,
        unit: int = 1,
    ) -> None:
        """Describe the order; little is worked out before the first draw is asked for.

        Args:
            length: images of the source.
            seed: decides the order; in [0, 2**63).
            held_out: rising indices, int64 [n], that are never drawn.
            blocks: where the images lie. With no blocks, few enough to hold all, or one for each image, an epoch is one
                permutation.
            batch_size: of the loader; it matters where there are blocks, see `block_order.BlockLayout`.
            unit: neighbours of a batch that should come from different blocks.
        """
        held = np.empty(0, np.int64) if held_out is None else held_out
        self.num_images = length - len(held)
        self._seed = seed
        # The k-th image that is drawn has index k + (held-out images before it).
        self._gaps = held - np.arange(len(held))
        self._layout: BlockLayout | None = None
        self.look_ahead = 0
        if blocks is not None and len(blocks.ends) == length and np.array_equal(blocks.ends, np.arange(1, length + 1)):
            self.look_ahead = blocks.window // 2  # one image each: a permutation of the images is one of the blocks
        elif blocks is not None:
            ends = blocks.ends - np.searchsorted(held, blocks.ends)
            layout = BlockLayout(ends, window=blocks.window, batch_size=batch_size, unit=unit)
            if layout.num_blocks > blocks.window:
                self._layout, self.look_ahead = layout, layout.look_ahead
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def indices(self, draws: Int64Array) -> Int64Array:
        """The image index of each draw (int64 [n], each at least 0), int64 [n]."""
        epochs, positions = np.divmod(draws, self.num_images)
        drawn = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            drawn[epochs == epoch] = self._epoch(epoch).at(positions[epochs == epoch])
        return drawn + np.searchsorted(self._gaps, drawn, side="right")

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            if len(self._epochs) == _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
            self._epochs[epoch] = (
                _Whole(self.num_images, self._seed, epoch)
                if self._layout is None
                else BlockOrder(self._layout, self._seed, epoch)
            )
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]
