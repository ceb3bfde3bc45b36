"""The plan of a dataset: everything that decides its bytes, and where each shard lies.

In: a bundle's digest, what the user asked for, and the numerics of the machines that will compute. Out: an immutable
`Plan` with an id, and `Task`s. A plan never names workers, actors, attempts or times: shard i is a pure function of
(plan, i).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from genworker import codecs, formats
from genworker.config import Spec, digest_of
from genworker.errors import UsageError
from genworker.formats.base import Format
from genworker.schema import Extras, ImageSchema

CONTROL_PREFIX = ".genworker/"
PLAN_KEY = CONTROL_PREFIX + "plan.json"
REMOVING_KEY = CONTROL_PREFIX + "removing.json"
CALIBRATION_KEY = CONTROL_PREFIX + "calibration.json"
RECEIPTS_PREFIX = CONTROL_PREFIX + "receipts/"
FAILURES_PREFIX = CONTROL_PREFIX + "failures/"
BUNDLE_PREFIX = CONTROL_PREFIX + "bundle/"
DATA_PREFIX = "data/"
MANIFEST_KEY = "_manifest.json"
SUCCESS_KEY = "_SUCCESS"

MAX_PLAN_BYTES = 2**24  # that are read of what lies under its key
_MAX_SAMPLES = 10**18


class Numerics(Spec):
    """How a generator is evaluated, as far as it decides bits.

    ``device_class`` names the kind of processor and its vector units, because libraries pick their kernels by it. They also
    cut matrix products by the number of threads: a Linear from 96 to 24 in float32 was measured to round otherwise from
    three threads on.
    """

    device_class: str = Field(description="cpu/AVX512, cuda/NVIDIA H100, ...")
    dtype: Literal["float32", "bfloat16"] = Field(description="type that convolutions compute in")
    memory_format: Literal["contiguous", "channels_last"] = Field(description="layout of image tensors")
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = Field(
        description="samples per evaluation, on a fixed global grid"
    )
    upsampling: Literal["transposed", "subpixel"] = Field(
        "transposed", description="how transposed convolutions to an image are computed"
    )
    launch: Literal["eager", "cuda_graph"] = Field("eager", description="how the kernels of a GPU are started")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="that evaluate on a CPU together")
    libraries: dict[str, str] = Field(description="name -> version of what computes and encodes")

    @model_serializer(mode="wrap")
    def _one_thread_goes_without_saying(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So do plans from before it was written down, and their ids have to stay.
        values: dict[str, Any] = dump(self)
        if self.threads == 1:
            values.pop("threads", None)
        return values


Column = Literal["label", "latents", "score"]
COLUMNS: tuple[Column, ...] = get_args(Column)


def _can_be_named(num_samples: int) -> int:
    if num_samples >= _MAX_SAMPLES:
        raise ValueError("samples are named by their index, in 18 digits at most; use less than 10**18")
    return num_samples


NumSamples = Annotated[int, Field(ge=1), AfterValidator(_can_be_named)]


def is_number(text: str) -> bool:
    """Whether ``text`` is a whole number from 0 on in plain digits, as people write class numbers and counts."""
    return text.isascii() and text.isdecimal() and len(text) < 10


class Plan(Spec):
    """The complete description of one dataset."""

    version: Literal[1] = 1
    bundle_digest: str
    image_schema: ImageSchema
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    num_samples: NumSamples
    samples_per_shard: Annotated[int, Field(ge=1)]
    labels: str = Field("balanced", description="balanced, uniform, or one class number")
    split: Literal["train", "test", "validation"] = "train"
    format: str
    codec: str
    columns: tuple[Column, ...] = Field(
        ("label",), description="stored beside index and image; label where there are any"
    )
    latent_dim: Annotated[int, Field(ge=0, le=65536)] = Field(0, description="of stored latents, or 0")
    scorer_sha256: str | None = Field(None, description="of the discriminator's weights that score, or None")
    numerics: Numerics

    @model_validator(mode="after")
    def _labels_are_known(self) -> Plan:
        if self.labels in {"balanced", "uniform"}:
            return self
        if not is_number(self.labels) or int(self.labels) >= self.image_schema.num_classes:
            raise ValueError(
                f"labels {self.labels!r}: say 'balanced', 'uniform', or a class number below {self.image_schema.num_classes}"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_whole(self) -> Plan:
        if self.columns != tuple(name for name in COLUMNS if name in self.columns):
            raise ValueError(f"columns {list(self.columns)}: each of {', '.join(COLUMNS)} once at most, in this order")
        if ("latents" in self.columns) != bool(self.latent_dim):
            raise ValueError(
                f"columns {list(self.columns)} with latent_dim {self.latent_dim}: one belongs to the other"
            )
        if ("score" in self.columns) != bool(self.scorer_sha256):
            raise ValueError(f"columns {list(self.columns)} with scorer {self.scorer_sha256}: one belongs to the other")
        return self

    @model_validator(mode="after")
    def _can_be_read(self) -> Plan:
        try:
            self.open_format()
        except UsageError as err:  # a format or codec that is not known here
            raise ValueError(str(err)) from err
        return self

    @property
    def plan_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the plan's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))[:16]

    @property
    def num_shards(self) -> int:
        """How many shards the dataset has."""
        return -(-self.num_samples // self.samples_per_shard)

    def task(self, shard_index: int) -> Task:
        """The task that makes shard ``shard_index``; raises IndexError outside [0, num_shards)."""
        if not 0 <= shard_index < self.num_shards:
            raise IndexError(f"shard {shard_index}: the plan has {self.num_shards}")
        first = shard_index * self.samples_per_shard
        return Task(
            shard_index=shard_index,
            first_index=first,
            num_samples=min(self.samples_per_shard, self.num_samples - first),
            key=self.shard_key(shard_index),
        )

    def tasks(self) -> Iterator[Task]:
        """All tasks in shard order; made one by one, because there may be a million."""
        return (self.task(index) for index in range(self.num_shards))

    def shard_key(self, shard_index: int) -> str:
        """The object key of a shard, in the naming that Hugging Face, Spark and img2dataset users know."""
        # Five digits up to 99,999 shards; more digits beyond, the same number for all, so that names sort by index.
        digits = max(5, len(str(self.num_shards)))
        suffix = formats.get(self.format).suffix
        return f"{DATA_PREFIX}{self.split}-{shard_index:0{digits}d}-of-{self.num_shards:0{digits}d}{suffix}"

    def shard_index_of(self, key: str) -> int | None:
        """The shard that lies under ``key``, or None where the plan has no such shard."""
        parts = key.rpartition("-of-")[0].rpartition("-")[2]
        if not (parts.isascii() and parts.isdecimal()) or int(parts) >= self.num_shards:
            return None
        return int(parts) if key == self.shard_key(int(parts)) else None

    def open_format(self) -> Format:
        """The shard format with the codec, ready to write or read shards of this plan."""
        codec = codecs.make(self.codec, self.image_schema)
        return formats.make(self.format, self.stored_schema, codec, self.extras)

    @property
    def stored_schema(self) -> ImageSchema:
        """The schema of what is stored: without classes where labels are not."""
        if "label" in self.columns:
            return self.image_schema
        return self.image_schema.model_copy(update={"num_classes": 0, "class_names": ()})

    @property
    def extras(self) -> Extras:
        """What is stored of a sample beside index, image and label."""
        return Extras(latent_dim=self.latent_dim, score="score" in self.columns)

    def shard_of(self, sample_index: int) -> int:
        """The shard that holds a sample; raises IndexError outside [0, num_samples)."""
        if not 0 <= sample_index < self.num_samples:
            raise IndexError(f"sample {sample_index}: the dataset has {self.num_samples}")
        return sample_index // self.samples_per_shard

    def provenance(self, task: Task) -> dict[str, str]:
        """What a shard says about itself."""
        return {
            "plan_id": self.plan_id,
            "first_index": str(task.first_index),
            "num_samples": str(task.num_samples),
        }


@dataclass(frozen=True)
class Task:
    """One shard to be made: samples [first_index, first_index + num_samples) into the object ``key``."""

    shard_index: int
    first_index: int
    num_samples: int
    key: str


def differences(ours: Plan, theirs: Plan) -> list[str]:
    """One line per field in which two plans differ: ``seed: 1 here, 0 there``."""
    left, right = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    return [f"{key}: {left[key]!r} here, {right[key]!r} there" for key in left if left[key] != right[key]]
