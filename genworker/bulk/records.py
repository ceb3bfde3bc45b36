"""What bulk work leaves beside the shards: receipts while it runs, a manifest when it is done.

These models are the only thing that readers and writers of a dataset share besides the plan. Both are plain JSON.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from genworker.bulk.plan import Plan
from genworker.bulk.shard_table import Count, Sha256, Shards, ShardTable
from genworker.bulk.stages import StageSeconds
from genworker.config import Spec, canonical_json

# What is read of what anybody may have put under the keys of such objects.
MAX_MANIFEST_BYTES = 2**30  # of five million shards
MAX_RECEIPTS_BYTES = 2**26  # of a batch; those of the largest jobs have some hundreds of KiB
MAX_NOTE_BYTES = 2**20  # of a failure or _SUCCESS


class Receipt(Spec):
    """Proof that one shard was committed.

    ``sha256`` is of the object under its key, ``num_bytes`` of all its objects.
    """

    shard_index: Annotated[int, Field(ge=0, lt=2**63)]
    num_samples: Count
    num_bytes: Count
    sha256: Sha256
    attempt: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="how many attempts at this task came before")
    stages: StageSeconds | None = Field(
        None, exclude=True, description="where the time of the attempt went; not stored"
    )
    duplicate: bool = Field(False, exclude=True, description="the shard was there with equal bytes; not stored")


class ReceiptBatch(Spec):
    """One object below .genworker/receipts/: the receipts of several shards of one plan."""

    plan_id: str
    receipts: tuple[Receipt, ...]


class Failure(Spec):
    """One object below .genworker/failures/: what ended a driver. It informs people; nothing depends on it."""

    plan_id: str
    error: str
    shards_done: Annotated[int, Field(ge=0)]
    at: float = Field(description="seconds since the epoch, by the driver's clock")


class Manifest(Spec):
    """_manifest.json: the dataset exists when this object does. Shards stand in sample order."""

    version: Literal[1] = 1
    plan_id: str
    plan: Plan
    num_samples: Count
    num_bytes: Count
    shards: Shards

    @classmethod
    def read(cls, text: bytes) -> Self:
        """What `model_validate_json` gives; for the JSON that genworker writes, without a million objects on the way."""
        scanned = ShardTable.scan(text)
        if scanned is None:
            return cls.model_validate_json(text)
        table, rest = scanned
        return cls.model_validate_json(rest).model_copy(update={"shards": table})

    def canonical(self) -> str:
        """See `Spec.canonical`; a million shards are never objects at a time."""
        head, gap, tail = canonical_json(self.model_dump(mode="json", exclude={"shards"}) | {"shards": []}).rpartition(
            '"shards":[]'
        )
        return "".join([head, gap[:-1], *ShardTable.of(self.shards).canonical(), gap[-1:], tail])


class Success(Spec):
    """_SUCCESS: written last; names the manifest that it vouches for."""

    plan_id: str
    manifest_sha256: Sha256
