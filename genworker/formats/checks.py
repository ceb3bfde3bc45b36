"""What every format asks of the samples that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, SampleBatch


def check_labels(batch: SampleBatch, schema: ImageSchema) -> None:
    """Raise ValueError, the caller's mistake, for labels that are missing, not wanted, or outside [0, num_classes)."""
    num_classes = schema.num_classes
    if (batch.labels is not None) != bool(num_classes):
        raise ValueError(f"labels are {'missing' if num_classes else 'given'}; the schema has {num_classes} classes")
    if batch.labels is not None and len(batch) and not 0 <= batch.labels.min() <= batch.labels.max() < num_classes:
        raise ValueError(
            f"labels span {batch.labels.min()}..{batch.labels.max()}; the schema has {num_classes} classes"
        )
