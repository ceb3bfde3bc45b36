"""From what the user asks to a plan, without Ray: the spec of a bulk job, its checks, and what the plan becomes.

In: flags, a bundle's description, numerics. Out: a `Plan`, or one clear error before anything was written.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from genworker import bundle as bundles
from genworker import codecs, formats
from genworker.bulk import commit
from genworker.bulk.plan import COLUMNS, Column, Numerics, NumSamples, Plan, differences, is_number
from genworker.bulk.shard import numerics_here
from genworker.bundle import BundleInfo
from genworker.config import Spec
from genworker.device import pick_device
from genworker.errors import PlanError, UsageError
from genworker.placement import NodeLabels
from genworker.schema import Extras, ImageSchema
from genworker.stores import open_store

_TARGET_SHARD_BYTES = 64 * 2**20
_MAX_SHARD_BYTES = 8 * _TARGET_SHARD_BYTES  # what a large micro-batch may make of them
_MIN_SHARDS = 16

Count = Annotated[int, Field(ge=1)]
_MOST_CPUS = 1024  # of one process


class GenerateSpec(Spec):
    """What the user asks of a bulk job."""

    presets: ClassVar[str] = "generate"

    bundle: str = Field(description="URL of a bundle")
    out: str = Field(description="URL of the dataset to make")
    num_samples: NumSamples
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    samples_per_shard: Count | None = Field(None, description="default: by size, at least 16 shards")
    labels: str = Field("balanced", description="balanced, uniform, or one class number")
    split: Literal["train", "test", "validation"] = "train"
    format: str = "parquet"
    codec: str = "png"
    columns: tuple[Column, ...] | None = Field(
        None, description="of label, latents, score; default: label where the model has classes"
    )
    precision: Literal["auto", "float32"] = Field("auto", description="auto takes bfloat16 where the processor has it")
    micro_batch: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="samples per evaluation; default: measured, or 128"
    )
    calibrate: bool = Field(True, description="measure what is fastest, where the job is long enough")
    actors: Count | tuple[Count, Count] | None = Field(
        None, description="a number, or [min, max] to follow what the cluster has; default: all that it holds"
    )
    use_gpu: bool = False
    gpus_per_actor: Annotated[float, Field(ge=0.0001)] = Field(
        1.0, description="with use_gpu; below 1, actors share a GPU"
    )
    cpus_per_actor: Annotated[int, Field(ge=1, le=_MOST_CPUS)] = Field(
        1, description="to compute with, or to encode beside a GPU"
    )
    node_labels: NodeLabels = Field(
        default_factory=dict, description="Ray labels that the nodes of actors must have; default: any node"
    )
    max_attempts: Count = 3
    wait_timeout: Annotated[float, Field(ge=0)] = Field(
        300.0, description="seconds to wait for a cluster that holds fewer actors than asked for"
    )
    drain_timeout: Annotated[float, Field(ge=0)] = Field(
        20.0, description="seconds that running shards have to end after SIGTERM or Ctrl-C"
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of one GPU, or without use_gpu of one CPU"
    )

    @property
    def fewest_actors(self) -> int:
        """How many actors there must be for the job to go on."""
        return self.actors[0] if isinstance(self.actors, tuple) else self.actors or 1

    @property
    def most_actors(self) -> int | None:
        """How many actors there may be; None: as many as the cluster holds."""
        return self.actors[1] if isinstance(self.actors, tuple) else self.actors

    @model_validator(mode="after")
    def _can_be_placed(self) -> GenerateSpec:
        if self.most_actors is not None and self.fewest_actors > self.most_actors:
            raise ValueError(f"actors {self.fewest_actors}:{self.most_actors}: write min:max, min first")
        if self.gpus_per_actor > 1:
            raise ValueError(
                f"gpus_per_actor {self.gpus_per_actor:g}: an actor computes on one GPU, the others would idle; give 1 or less"
            )
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _in_one_spelling(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return str(int(value)) if isinstance(value, str) and is_number(value) else value  # 03 is 3

    @field_validator("actors", mode="before")
    @classmethod
    def _min_and_max(cls, value: Any) -> Any:
        if not isinstance(value, str | int):
            return value
        parts = str(value).split(":")
        if len(parts) > 2 or not all(is_number(part) and int(part) for part in parts):
            raise ValueError("write a number of actors, or min:max as in 2:8, each from 1 on")
        return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))

    @field_validator("columns", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def sample_schema(info: BundleInfo) -> ImageSchema:
    """The schema of generated samples: unlabelled when the model ignores labels."""
    schema = info.image_schema
    return schema if info.family.conditional else schema.model_copy(update={"num_classes": 0, "class_names": ()})


def default_samples_per_shard(num_samples: int, schema: ImageSchema, micro_batch: int) -> int:
    """Shards of about 64 MiB of raw pixels, but at least 16 of them where there are enough samples; a multiple of 128.

    Where that is no whole number of micro-batches, the nearest one below is taken, or a single micro-batch of at most 512 MiB.
    Depends on the rest of the plan alone, never on the cluster: the plan must be the same wherever the job runs.
    """
    sample_bytes = schema.channels * schema.height * schema.width
    wanted = max(128, min(_TARGET_SHARD_BYTES // sample_bytes, num_samples // _MIN_SHARDS))
    usual = wanted // 128 * 128
    whole = max(1, wanted // micro_batch) * micro_batch
    return usual if usual % micro_batch == 0 or whole * sample_bytes > _MAX_SHARD_BYTES else whole


def make_plan(spec: GenerateSpec, info: BundleInfo, numerics: Numerics) -> Plan:
    """The plan of a request. Raises PlanError or UsageError when it cannot be carried out."""
    schema = sample_schema(info)
    _check_labels(spec, schema)
    codec = codecs.make(spec.codec, schema)
    columns = _columns(spec, info, schema)
    latent_dim = info.family.latent_dim if "latents" in columns else 0
    extras = Extras(latent_dim, score="score" in columns)
    per_shard = spec.samples_per_shard
    if per_shard is None:
        usual = default_samples_per_shard(spec.num_samples, schema, numerics.micro_batch)
        most = formats.make(spec.format, schema, codec, extras).max_samples_per_shard()
        # Tiny images, beside which names, latents and headers are large.
        per_shard = usual if usual <= most else most // numerics.micro_batch * numerics.micro_batch or max(1, most)
    formats.check_samples_per_shard(spec.format, schema, codec, per_shard, extras)
    return Plan.parse(
        {
            "bundle_digest": info.digest,
            "image_schema": schema.model_dump(),
            "seed": spec.seed,
            "num_samples": spec.num_samples,
            "samples_per_shard": per_shard,
            "labels": spec.labels,
            "split": spec.split,
            "format": spec.format,
            "codec": codecs.canonical(spec.codec),
            "columns": columns,
            "latent_dim": latent_dim,
            "scorer_sha256": info.scorer.sha256 if info.scorer and extras.score else None,
            "numerics": numerics.model_dump(),
        },
        origin="generate",
    )


def _columns(spec: GenerateSpec, info: BundleInfo, schema: ImageSchema) -> tuple[Column, ...]:
    if spec.columns is None:
        return ("label",) if schema.num_classes else ()
    if "label" in spec.columns and not schema.num_classes:
        raise UsageError("columns label: this model knows no classes, so its samples have no labels; leave label out")
    if "score" in spec.columns and info.scorer is None:
        raise UsageError(
            f"columns score: the bundle {spec.bundle} holds no discriminator to score with, as those of r3gan with pac 1 do; "
            "train it again, or leave score out"
        )
    return tuple(name for name in COLUMNS if name in spec.columns)


def _check_labels(spec: GenerateSpec, schema: ImageSchema) -> None:
    if spec.labels != "balanced" and not schema.num_classes:
        raise UsageError(
            f"labels {spec.labels!r}: this model knows no classes, so its samples have no labels; leave --labels out"
        )


def check_reachable(spec: GenerateSpec) -> None:
    """Raise UsageError for an output that only this process could see."""
    if spec.out.startswith("memory://"):
        raise UsageError(f"out {spec.out}: memory:// lives in one process and actors are others; use a folder or s3://")


def resolve(spec: GenerateSpec) -> tuple[Plan, bool]:
    """The plan that `generate` would carry out: where the URL holds none yet, with this machine's numerics, not calibrated.

    With it comes whether that is settled, or a job that is long enough would change the numerics by measuring first.
    """
    check_reachable(spec)
    info = bundles.load_info(open_store(spec.bundle))
    existing = commit.read_plan(open_store(spec.out))
    if existing is not None:
        return check_same(spec, info, existing), True
    device = pick_device(use_gpu=spec.use_gpu)
    plan = make_plan(spec, info, numerics_for(spec, sample_schema(info), device))
    return plan, not spec.calibrate


def numerics_for(spec: GenerateSpec, schema: ImageSchema, device: torch.device) -> Numerics:
    """The numerics that a new plan of this request gets when machines like this one evaluate it on ``device``."""
    force_float32 = spec.precision == "float32"
    return numerics_here(
        device,
        spec.format,
        spec.codec,
        schema,
        force_float32=force_float32,
        micro_batch=spec.micro_batch,
        num_cpus=spec.cpus_per_actor,
    )


def check_same(spec: GenerateSpec, info: BundleInfo, existing: Plan) -> Plan:
    """``existing``, if it is what ``spec`` asks for; numerics are taken from it, because they follow the first run."""
    wanted = make_plan(spec, info, existing.numerics)
    lines = differences(wanted, existing)
    if spec.precision == "float32" and existing.numerics.dtype != "float32":
        lines.append(f"numerics.dtype: 'float32' here, {existing.numerics.dtype!r} there")
    if spec.micro_batch not in {None, existing.numerics.micro_batch}:
        lines.append(f"numerics.micro_batch: {spec.micro_batch} here, {existing.numerics.micro_batch} there")
    if lines:
        listed = "\n  ".join(lines)
        raise PlanError(
            f"{spec.out} holds the plan of another dataset; write to another URL, or repeat the command that made it. "
            f"Differences:\n  {listed}"
        )
    return existing


def virtual_plan(info: BundleInfo, num_samples: int, seed: int, device: torch.device) -> Plan:
    """The plan of a dataset that nobody stores: the samples that `generate` would write on this machine by default."""
    values = {"bundle": "-", "out": "-", "num_samples": num_samples, "seed": seed}
    spec = GenerateSpec.parse(values, origin="samples of a bundle")
    return make_plan(spec, info, numerics_for(spec, sample_schema(info), device))
