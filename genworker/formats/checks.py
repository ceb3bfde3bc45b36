"""What every format asks of the samples that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from genworker.schema import Extras, ImageSchema, SampleBatch


def check_samples(batch: SampleBatch, schema: ImageSchema, extras: Extras) -> None:
    """Raise ValueError, the caller's mistake, for labels, latents or scores that are missing, not wanted or impossible."""
    num_classes = schema.num_classes
    if (batch.labels is not None) != bool(num_classes):
        raise ValueError(f"labels are {'missing' if num_classes else 'given'}; the schema has {num_classes} classes")
    if batch.labels is not None and len(batch) and not 0 <= batch.labels.min() <= batch.labels.max() < num_classes:
        raise ValueError(
            f"labels span {batch.labels.min()}..{batch.labels.max()}; the schema has {num_classes} classes"
        )
    seen = 0 if batch.latents is None else batch.latents.shape[1]
    if seen != extras.latent_dim:
        raise ValueError(f"{seen} latents per sample; the dataset stores {extras.latent_dim}")
    if (batch.scores is not None) != extras.score:
        raise ValueError(f"scores are {'missing' if extras.score else 'given'}; the dataset says otherwise")
    if batch.scores is not None and not np.isfinite(batch.scores).all():
        raise ValueError("a score is not finite")
