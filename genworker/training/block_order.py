"""The order of one epoch of images that lie in blocks: blocks are shuffled, then images within a few blocks at a time.

In: how many images each block holds, and how many blocks may be open at once. Out: positions of an epoch -> images. A number of
lanes, which does not depend on the number of workers, each read blocks of their own: a worker that makes a part of every
batch opens the blocks of a few lanes and no others.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from genworker.sampling.latents import Stream, raw_words

if TYPE_CHECKING:
    from genworker.schema import Int64Array

_MAX_LANES = 64
_BLOCKS_PER_LANE = 4  # at least; the ends of lanes cut blocks in two, which are then read twice


class BlockLayout:
    """What all epochs have in common: the blocks, and which position of an epoch belongs to which lane.

    The blocks of an epoch in their shuffled order make up a line of images. The line is cut into lanes of equal length,
    each of which gives its images in turn: ``batch_size / lanes`` to every batch, always at the same place of the batch
    (until the epoch ends inside one). What is left at the end, less than a batch, is drawn lane by lane. Lanes take turns
    image by image among ``unit`` of them, so that images judged together come from different blocks.

    Attributes:
        num_blocks: blocks that hold an image to draw.
        num_images: images in all blocks.
        look_ahead: images drawn in the time that half of the open blocks are used up.
    """

    def __init__(self, ends: Int64Array, *, window: int, batch_size: int, unit: int) -> None:
        """Lay out blocks that end at ``ends`` (int64 [n], not falling), of which ``window`` may be open at once."""
        sizes = np.diff(ends, prepend=0)
        self.starts, self.sizes = (ends - sizes)[sizes > 0], sizes[sizes > 0]
        self.num_blocks, self.num_images = len(self.sizes), int(ends[-1])
        most = min(_MAX_LANES, window, max(1, self.num_blocks // _BLOCKS_PER_LANE))
        self.lanes = max((n for n in range(unit, most + 1, unit) if batch_size % n == 0), default=1)
        self.blocks_per_group = max(1, window // self.lanes)
        self.look_ahead = window * self.num_images // (2 * self.num_blocks)
        self.lane_ends = np.arange(1, self.lanes + 1, dtype=np.int64) * self.num_images // self.lanes
        self.lane_starts = np.concatenate([[0], self.lane_ends[:-1]])
        self._bundle = unit if self.lanes % unit == 0 else 1
        self._per_round = batch_size // self.lanes
        self._rounds = self.num_images // (self.lanes * self._per_round)
        left = self.lane_ends - self.lane_starts - self._rounds * self._per_round
        self._tail_ends = np.cumsum(left)
        self._tail_starts = self._tail_ends - left

    def in_line(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The lane of each position of an epoch, and its place in the line before images are shuffled."""
        round_, place = np.divmod(positions, self.lanes * self._per_round)
        bundle, place = np.divmod(place, self._bundle * self._per_round)
        lane = bundle * self._bundle + place % self._bundle
        step = round_ * self._per_round + place // self._bundle
        late = round_ >= self._rounds
        tail = positions[late] - self._rounds * self.lanes * self._per_round
        lane[late] = np.searchsorted(self._tail_ends, tail, side="right")
        step[late] = self._rounds * self._per_round + tail - self._tail_starts[lane[late]]
        return lane, self.lane_starts[lane] + step


class BlockOrder:
    """One epoch: ``at(positions)`` gives images; memory is that of the list of blocks and of a few windows."""

    def __init__(self, layout: BlockLayout, seed: int, epoch: int) -> None:
        self._layout, self._seed, self._epoch = layout, seed, epoch
        words = raw_words(seed, Stream.ORDER, epoch, 1, layout.num_blocks)[0]
        self._blocks = np.argsort(words, kind="stable").astype(np.int64)
        sizes = layout.sizes[self._blocks]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._first_blocks = np.searchsorted(self._ends, layout.lane_starts, side="right")
        self._groups: OrderedDict[int, Int64Array] = OrderedDict()

    def at(self, positions: Int64Array) -> Int64Array:
        """The image at each position (int64 [n], in [0, num_images)), int64 [n] in [0, num_images)."""
        layout = self._layout
        lane, line = layout.in_line(positions)
        own = self._first_blocks[lane]
        block = np.searchsorted(self._ends, line, side="right")
        first = block - (block - own) % layout.blocks_per_group  # of the group of blocks that the image is shuffled in
        last = np.minimum(first + layout.blocks_per_group, layout.num_blocks) - 1
        start = np.maximum(self._starts[first], layout.lane_starts[lane])
        stop = np.minimum(self._ends[last], layout.lane_ends[lane])
        by_group = np.argsort(start, kind="stable")
        shuffled = np.empty(len(positions), np.int64)
        for chosen in np.split(by_group, np.flatnonzero(np.diff(start[by_group])) + 1) if len(positions) else ():
            begin = int(start[chosen[0]])
            shuffled[chosen] = self._shuffled(begin, int(stop[chosen[0]]))[line[chosen] - begin]
        block = np.searchsorted(self._ends, shuffled, side="right")
        drawn: Int64Array = shuffled - self._starts[block] + layout.starts[self._blocks[block]]
        return drawn

    def _shuffled(self, start: int, stop: int) -> Int64Array:
        """The places [start, stop) of the line in a random order."""
        if start not in self._groups:
            if len(self._groups) == 3 * self._layout.lanes:  # of each lane: drawn from, looked ahead to, one to spare
                self._groups.popitem(last=False)
            first = self._epoch * self._layout.num_images + start
            words = raw_words(self._seed, Stream.ORDER_IN_BLOCKS, first, stop - start, 1)[:, 0]
            self._groups[start] = start + np.argsort(words, kind="stable").astype(np.int64)
        self._groups.move_to_end(start)
        return self._groups[start]
