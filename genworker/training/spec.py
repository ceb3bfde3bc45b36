"""What a training run is: data, family, length, and the resources to run it on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from genworker.config import Spec, digest_of, union_by_name
from genworker.families import AnyFamilyConfig
from genworker.sources import SOURCES
from genworker.sources import get as get_source
from genworker.sources.base import SourceConfig

if TYPE_CHECKING:
    AnySourceConfig = SourceConfig
else:
    AnySourceConfig = union_by_name(get_source(name).Config for name in SOURCES)


class TrainingSpec(Spec):
    """Length and rhythm of a run. Everything is counted in images, so it means the same on any number of workers."""

    images: Annotated[int, Field(ge=1)] = Field(description="images to train on in all; epochs follow from the data")
    batch_size: Annotated[int, Field(ge=1)] = Field(64, description="global: shared by all workers")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of convolutions; auto takes bfloat16 where the processor has it"
    )
    report_every_images: Annotated[int, Field(ge=1)] = 2_000
    checkpoint_every_images: Annotated[int, Field(ge=1)] = 20_000
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    max_nonfinite_steps: Annotated[int, Field(ge=0)] = Field(
        20, description="optimizer steps with a non-finite gradient (each is skipped and counted) before the run stops"
    )


class ResourceSpec(Spec):
    """What the run asks of the cluster. None of this changes the result beyond floating-point summation order."""

    workers: Annotated[int, Field(ge=1)] = 1
    use_gpu: bool = False
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1


class TrainSpec(Spec):
    """A complete training spec, one YAML file."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: AnySourceConfig
    family: AnyFamilyConfig
    training: TrainingSpec
    resources: ResourceSpec = ResourceSpec()

    @model_validator(mode="after")
    def _every_worker_has_an_image(self) -> TrainSpec:
        if self.training.batch_size < self.resources.workers:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is smaller than resources.workers "
                f"{self.resources.workers}: every worker needs at least one image of each batch"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The part of the spec that decides the result: all but resources and rhythm."""
        values = self.model_dump(mode="json")
        del values["resources"]
        for key in ("report_every_images", "checkpoint_every_images", "keep_checkpoints", "max_nonfinite_steps"):
            del values["training"][key]
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
