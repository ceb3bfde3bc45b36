"""The measures of health that a run takes at every report: of networks as they are, on images chosen once.

In: the networks of a run, a few hundred training images and as many that are held out. Out: numbers by name. It trains
nothing and needs no other rank.
"""

from __future__ import annotations

import numpy as np
import torch

from genworker.families.base import Batch, Measures
from genworker.sampling.latents import Stream
from genworker.schema import Int64Array, SampleBatch
from genworker.sources.base import Source
from genworker.training.collectives import WorkerGroup
from genworker.training.loader import images_of
from genworker.training.order import held_out_indices
from genworker.training.reader import Reader
from genworker.training.step import Context, Trainer

_NUM_IMAGES = 256
_MIN_HELD_OUT = 32  # fewer tell nothing
_REACH = 64 * _NUM_IMAGES  # images from the start of the source that training images are taken from
_STREAM = Stream.TRAINING + 1024  # far from the phases' streams


class Examiner:
    """Examines the networks of ``trainer`` on images of ``source``, read at the first measurement."""

    def __init__(self, trainer: Trainer, source: Source) -> None:
        self._trainer = trainer
        held_out = held_out_indices(len(source), trainer.spec.training.holdout_share)
        # The first report is no place to end a run at, so a store that fails is asked again here too.
        self._reader = Reader(source, held_out, trainer.spec.training.store_patience_seconds)
        self._trained_on = _spread(np.setdiff1d(np.arange(min(len(source), _REACH), dtype=np.int64), held_out))
        self._held_out = None
        if len(held_out) >= _MIN_HELD_OUT:
            self._held_out = _spread(held_out)
        self._batches: tuple[Batch, Batch | None] | None = None

    @torch.no_grad()
    def measure(self) -> Measures:
        """What the family measures, by name; see `genworker.families.base.Family.examine`."""
        trainer = self._trainer
        if self._batches is None:
            self._batches = self._read()
        train, held_out = self._batches
        context = Context(
            trainer.spec.seed,
            WorkerGroup(0, 1, 1.0),
            trainer.device,
            progress=trainer.state.counters.images_seen / trainer.spec.training.images,
            num_draws=len(train.images),
            stream_base=_STREAM,
        )
        with trainer.autocast():
            return trainer.family.examine(trainer.networks, train, held_out, context)

    def _read(self) -> tuple[Batch, Batch | None]:
        train = self._reader.read(self._trained_on)
        if self._held_out is None:
            return self._batch(train), None
        held_out = self._reader.read_exactly(self._held_out)  # a stand-in for a corrupt image would be a training image
        both = min(len(train.pixels), len(held_out.pixels))  # equally many, so that both see the same noise
        return self._batch(train, both or None), self._batch(held_out, both) if both else None

    def _batch(self, samples: SampleBatch, count: int | None = None) -> Batch:
        labels = None if samples.labels is None else torch.from_numpy(samples.labels[:count]).to(self._trainer.device)
        return Batch(images_of(samples.pixels[:count]).to(self._trainer.device), labels)


def _spread(indices: Int64Array) -> Int64Array:
    """At most so many of ``indices``, evenly spread."""
    return indices[:: max(1, -(-len(indices) // _NUM_IMAGES))]
