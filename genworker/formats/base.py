"""The contract of a shard format: a writer that returns the whole shard as bytes, and a reader beside it.

In: `SampleBatch`es and a codec. Out: the bytes of one shard. A format never touches a store and never sees a plan beyond
the few lines of provenance that it stores inside the shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from genworker.codecs.base import Codec
from genworker.schema import NO_EXTRAS, Extras, ImageSchema, Int64Array, SampleBatch


class ShardWriter(Protocol):
    """Builds one shard in memory."""

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples; ``encoded`` holds what the shard's codec makes of them, where that was done before."""
        ...

    def close(self) -> bytes:
        """Finish the shard and return its bytes; the writer is used up."""
        ...


class ShardReader(Protocol):
    """Reads one shard from its bytes."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """The key-value lines that the writer stored (plan_id, first_index, num_samples)."""
        ...

    def sample_indices(self) -> Int64Array:
        """All sample indices of the shard in stored order, int64 [N], without decoding an image."""
        ...

    def batches(self, first_row: int = 0) -> Iterator[SampleBatch]:
        """Decode and yield samples in stored order, from position ``first_row`` of the shard on."""
        ...

    def read_row(self, row: int) -> SampleBatch:
        """Decode the one sample at position ``row`` of the shard."""
        ...


class Format(Protocol):
    """One way to store a shard; writer and reader are made by the same object.

    Attributes:
        name: what the user writes after ``--format``.
        extension: file extension without the dot.
        arrow: what `pyarrow.dataset` calls such files, or None where it cannot read them.
        library: name and version of the writer's library; part of a plan, because it decides the bytes.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    arrow: ClassVar[str | None]
    library: str

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras = NO_EXTRAS) -> None: ...

    def max_samples_per_shard(self) -> int:
        """How many samples of this schema one shard can surely hold, whatever the pixels are."""
        ...

    def writer(self, provenance: Mapping[str, str]) -> ShardWriter:
        """Start a shard; the same batches and provenance always give the same bytes."""
        ...

    def reader(self, data: bytes) -> ShardReader:
        """Open a shard. Raises DatasetError when the bytes are not a whole shard of this format and schema."""
        ...
