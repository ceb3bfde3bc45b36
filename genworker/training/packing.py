"""The end of training: the weight average of a run as a bundle, with its lineage."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import torch
from torch import nn

import genworker
from genworker.bundle import Bundle, Lineage
from genworker.errors import TrainingError
from genworker.families.base import Scorer
from genworker.sources.base import Source
from genworker.training.hooks import Metrics
from genworker.training.step import Trainer, all_finite


def pack_bundle(trainer: Trainer, source: Source, metrics: Metrics) -> Bundle:
    """The weight average of a run as a bundle. Raises TrainingError where it is not finite: nothing could be made with it."""
    spec = trainer.spec
    if not all_finite(trainer.average.networks.parameters()):
        raise TrainingError("the averaged weights are not finite at the end of the run; lower family.lr")
    lineage = Lineage(
        source=spec.data.name if spec.data.url is None else f"{spec.data.name} {spec.data.url}",
        source_digest=source.digest(),
        spec=spec.model_dump(mode="json"),
        images_seen=trainer.state.counters.images_seen,
        metrics={
            name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)
        },
        versions={"genworker": genworker.__version__, "torch": torch.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    scoring = trainer.family.scoring if isinstance(trainer.family, Scorer) else ()
    # As trained, not averaged: the game's other player, at the moment when it ended.
    judges = nn.ModuleDict({name: trainer.networks[name] for name in scoring})
    return Bundle.pack(spec.family, source.schema, trainer.average.networks, lineage, judges)
