"""What a training run is: data, family, length, and the resources to run it on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from genworker import metrics
from genworker.config import Spec, digest_of, union_by_name
from genworker.families import AnyFamilyConfig
from genworker.placement import NodeLabels
from genworker.sources import SOURCES
from genworker.sources import get as get_source
from genworker.sources.base import SourceConfig
from genworker.training.watchdog_spec import WatchdogSpec

if TYPE_CHECKING:
    AnySourceConfig = SourceConfig
else:
    AnySourceConfig = union_by_name(get_source(name).Config for name in SOURCES)


class TrainingSpec(Spec):
    """Length and rhythm of a run. Everything is counted in images, so it means the same on any number of workers."""

    images: Annotated[int, Field(ge=1)] = Field(description="images to train on in all; epochs follow from the data")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="global: shared by all workers")
    micro_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="images over all workers in one forward and backward pass; gradients of several are accumulated to "
        "batch_size. For networks that do not fit into memory otherwise. null: the whole batch. What a VAE's loss takes from "
        "all images at once (gaussian's sigma, which latents free bits cover) it takes from each part by itself",
    )
    holdout_share: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.02, description="share of the images (1,000 at most) that is never trained on, to see memorising by"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions; auto takes bfloat16 where the processor has it"
    )
    report_every_images: Annotated[int, Field(ge=1)] = 2_000
    checkpoint_every_images: Annotated[int, Field(ge=1)] = 20_000
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(
        2, description="of the newest, and of the newest that a diverging run may go back to"
    )
    keep_best_checkpoints: Annotated[int, Field(ge=0)] = Field(
        1, description="checkpoints to keep besides, with the best values of evaluation.metric"
    )
    store_patience_seconds: Annotated[float, Field(ge=0)] = Field(
        120.0, description="how long an object store that fails is tried again before the run stops"
    )
    callbacks: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        ("tensorboard",), description="where reports and pictures go besides metrics.jsonl, each once"
    )

    @field_validator("callbacks")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("name each once: two of a kind would write the same places")
        return names


class EvaluationSpec(Spec):
    """When and how the averaged generator is measured while training goes on, beside the training workers."""

    every_images: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="at the first checkpoint after every so many images; null: at every checkpoint",
    )
    num_samples: Annotated[int, Field(ge=0)] = Field(
        2_000, description="generated for one evaluation, 20 at least; 0 turns it off"
    )
    metric: str = Field("frechet", description="the number that decides which checkpoints are the best")
    split: Literal["held-out", "test"] = Field(
        "held-out", description="real images to compare with: those of training.holdout_share, or the data's test split"
    )
    extractor_images: Annotated[int, Field(ge=1)] = Field(
        120_000, description="seen in training the classifier whose features are compared; at most 8 epochs"
    )
    final_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="how long a run waits at its end for the evaluation of its last checkpoint; large images take longer",
    )

    @field_validator("num_samples")
    @classmethod
    def _enough(cls, number: int) -> int:
        if 0 < number < metrics.MIN_IMAGES:
            raise ValueError(f"metrics need at least {metrics.MIN_IMAGES}; or 0, to train without evaluation")
        return number

    @field_validator("metric")
    @classmethod
    def _a_number(cls, name: str) -> str:
        if name not in metrics.numbers():
            raise ValueError(f"no metric computes such a number; known: {', '.join(metrics.numbers())}")
        return name


class ResourceSpec(Spec):
    """What the run asks of the cluster. None of this changes the result beyond floating-point summation order."""

    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        1, description="data-parallel workers: a number, or [min, max] to follow what the cluster has"
    )
    use_gpu: bool = False
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    node_labels: NodeLabels = Field(
        default_factory=dict, description="Ray labels that the nodes of workers must have; default: any node"
    )
    wait_seconds: Annotated[float, Field(ge=0)] = Field(
        300.0,
        description="how long to wait for a cluster that lacks the room, from the start or after a loss; for room that other "
        "work uses, a minute at least",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        3, description="times that lost workers or nodes are replaced, each from the newest checkpoint"
    )
    collective_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        300.0, description="how long a worker waits for the others before it gives up; a dead one is noticed at once"
    )
    stop_grace_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description="how long workers have to save a checkpoint when the run is stopped (SIGTERM, Ctrl-C). Who stops it has to "
        "wait more than ten seconds longer: RAY_JOB_STOP_WAIT_TIME_S of `ray job stop` (60 with genworker submit, 120 in "
        "infra/kuberay), and a pod's termination grace (150 there)",
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of one GPU, or without use_gpu of one CPU: the run estimates and reports its cost"
    )

    @property
    def most_workers(self) -> int:
        """The largest number of workers that the run may have."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def fewest_workers(self) -> int:
        """The smallest number of workers that the run may have."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _a_range(self) -> ResourceSpec:
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers {list(self.workers)}: write [min, max], min first")  # type: ignore[arg-type]
        return self


class TrainSpec(Spec):
    """A complete training spec, one YAML file."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: AnySourceConfig
    family: AnyFamilyConfig
    training: TrainingSpec
    watchdog: WatchdogSpec = WatchdogSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourceSpec = ResourceSpec()

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainSpec:
        batch, micro = self.training.batch_size, self.training.micro_batch_size
        if micro is not None and batch % micro:
            raise ValueError(
                f"training.batch_size {batch} is no multiple of training.micro_batch_size {micro}: gradients are "
                "accumulated over whole micro-batches"
            )
        unit, workers = self.family.unit, self.resources.most_workers
        if (micro or batch) % unit:
            raise ValueError(
                f"training.{'micro_' if micro else ''}batch_size {micro or batch} is no multiple of {unit}, the images "
                "that family.pac shows the discriminator together"
            )
        if (micro or batch) < workers * unit:
            raise ValueError(
                f"training.{'micro_' if micro else ''}batch_size {micro or batch} is smaller than resources.workers "
                f"{workers}{f' times {unit} (family.pac)' if unit > 1 else ''}: every worker needs at least one image of "
                "each batch"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The part of the spec that decides the result: all but resources and rhythm."""
        values = self.model_dump(mode="json")
        for part in ("resources", "watchdog", "evaluation"):
            del values[part]
        for key in (
            "report_every_images",
            "checkpoint_every_images",
            "keep_checkpoints",
            "keep_best_checkpoints",
            "store_patience_seconds",
            "callbacks",
        ):
            del values["training"][key]
        for key in self.data.no_effect:
            del values["data"][key]
        return values

    @property
    def spec_id(self) -> str:
        """The first 16 hex digits of the identity's SHA-256."""
        return digest_of(self.identity())[:16]


def spec_differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """One line per key in which two identities differ: ``family.lr.start: 0.001 here, 0.002 there``."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(key), theirs.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += spec_differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} here, {right!r} there")
    return lines
