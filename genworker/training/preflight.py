"""What can be known to be wrong with a run before it costs a cluster start, and before its URL is claimed.

In: a spec and its open source. Out: what the run will be, or the error that every worker would meet. It reads no images and
needs no memory for the networks.
"""

from __future__ import annotations

from genworker import families, metrics
from genworker.errors import UsageError
from genworker.families.base import Networks
from genworker.families.building import build_without_memory
from genworker.schema import ImageSchema
from genworker.sources.base import Source
from genworker.training.loader import Loader
from genworker.training.order import held_out_indices
from genworker.training.reference import real_images
from genworker.training.spec import TrainSpec


def check(spec: TrainSpec, source: Source) -> None:
    """Raise what building the networks, drawing the first batch and the first evaluation would raise.

    Raises:
        UsageError: the family's networks do not suit the data, or their sizes are impossible; the number that evaluations are
            to decide by needs labels that are not there.
        SourceError: there are fewer images to train on than one batch has; there is no test split to evaluate on.
    """
    settings = spec.training
    _build(spec, source.schema)
    Loader(
        source,
        batch_size=settings.micro_batch_size or settings.batch_size,
        seed=spec.seed,
        world_size=spec.resources.most_workers,
        unit=spec.family.unit,
        prefetch=0,
        held_out=held_out_indices(len(source), settings.holdout_share),
    )
    if spec.evaluation.num_samples:
        classes = bool(source.schema.num_classes)
        metrics.choose(
            None,
            (metrics.of_number(spec.evaluation.metric),),
            classes=classes,
            labels=classes and spec.family.conditional,
        )
        if spec.evaluation.split == "test":
            real_images(spec.data, settings.holdout_share, "test", source)


def too_few_to_compare(spec: TrainSpec, source: Source) -> str | None:
    """Why no evaluation is possible although one is asked for, as it is by default: a line with what to change; or None."""
    evaluation, settings = spec.evaluation, spec.training
    if not evaluation.num_samples or evaluation.split == "test":
        return None
    num_held_out = len(held_out_indices(len(source), settings.holdout_share))
    if num_held_out >= metrics.MIN_IMAGES:
        return None
    return (
        f"nothing is evaluated: of {len(source)} images training.holdout_share {settings.holdout_share:g} holds out "
        f"{num_held_out}, and {metrics.MIN_IMAGES} are the least to compare with; raise it, or set evaluation.split test, or "
        "evaluation.num_samples 0 where that is as it should be"
    )


def size_of_networks(spec: TrainSpec, schema: ImageSchema) -> str:
    """The parameters of each network, for people. Raises UsageError where the networks do not suit ``schema``."""
    numbers = {
        name: sum(weight.numel() for weight in network.parameters()) for name, network in _build(spec, schema).items()
    }
    return ", ".join(f"{name} {number:,} parameters" for name, number in numbers.items() if number)


def size_of_run(spec: TrainSpec) -> str:
    """Images, steps, the global batch and what computes them, for people."""
    settings, resources = spec.training, spec.resources
    fewest, most = resources.fewest_workers, resources.most_workers
    workers = f"{fewest} to {most} workers" if fewest < most else "1 worker" if most == 1 else f"{most} workers"
    each = f"{resources.cpus_per_worker} CPU" + (" and 1 GPU" if resources.use_gpu else "")
    return (
        f"{settings.images:,} images in {-(-settings.images // settings.batch_size):,} steps of {settings.batch_size:,}, "
        f"{workers} with {each} each"
    )


def _build(spec: TrainSpec, schema: ImageSchema) -> Networks:
    try:
        return build_without_memory(families.make(spec.family, schema))
    except RuntimeError as err:
        raise UsageError(
            f"family {spec.family.name}: its networks cannot be built: {err}; lower the sizes below family in the spec"
        ) from err
