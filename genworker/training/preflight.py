"""What can be known to be wrong with a run before it costs a cluster start, and before its URL is claimed.

In: a spec and its open source. Out: nothing, or the error that every worker would meet. It reads no images and needs no
memory for the networks.
"""

from __future__ import annotations

from genworker import families
from genworker.errors import UsageError
from genworker.families.building import build_without_memory
from genworker.sources.base import Source
from genworker.training.loader import Loader
from genworker.training.order import held_out_indices
from genworker.training.spec import TrainSpec


def check(spec: TrainSpec, source: Source) -> None:
    """Raise what building the networks and drawing the first batch would raise.

    Raises:
        UsageError: the family's networks do not suit the data, or their sizes are impossible.
        SourceError: there are fewer images to train on than one batch has.
    """
    settings = spec.training
    try:
        build_without_memory(families.make(spec.family, source.schema))
    except RuntimeError as err:
        raise UsageError(
            f"family {spec.family.name}: its networks cannot be built: {err}; lower the sizes below family in the spec"
        ) from err
    Loader(
        source,
        batch_size=settings.micro_batch_size or settings.batch_size,
        seed=spec.seed,
        world_size=spec.resources.most_workers,
        unit=spec.family.unit,
        prefetch=0,
        held_out=held_out_indices(len(source), settings.holdout_share),
    )
