"""The contract of a shard format: a writer that returns a shard as bytes, and a reader beside it.

In: `SampleBatch`es and a codec. Out: the bytes of one shard, all of it or the table of the files that lie beside it, which
the writer gives away as they are made. A format never touches a store and never sees a plan beyond
the few lines of provenance that it stores inside the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NoReturn, Protocol

from genworker.codecs.base import Codec
from genworker.schema import NO_EXTRAS, Extras, ImageSchema, Int64Array, SampleBatch

# How the files beside a shard's table are stored and fetched, by their names.
Put = Callable[[str, bytes], None]
Get = Callable[[str], bytes]


def no_objects(*_args: object) -> NoReturn:
    """The `Put` and `Get` of who expects a shard of one object."""
    raise ValueError("this format stores files beside the shard's table: say how to put or get them")


class ShardWriter(Protocol):
    """Builds one shard in memory."""

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples; ``encoded`` holds what the shard's codec makes of them, where that was done before."""
        ...

    def close(self) -> bytes:
        """Finish the shard and return what lies under its key; the writer is used up."""
        ...


class ShardReader(Protocol):
    """Reads one shard from its bytes.

    Attributes:
        num_bytes: of the whole shard, files beside it included.
    """

    num_bytes: int

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
        suffix: what follows a shard's name in its key, such as ``.parquet``.
        arrow: what `pyarrow.dataset` calls such files, or None where it cannot read them.
        library: name and version of the writer's library; part of a plan, because it decides the bytes.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    arrow: ClassVar[str | None]
    library: str

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras = NO_EXTRAS) -> None: ...

    def max_samples_per_shard(self) -> int:
        """How many samples of this schema one shard can surely hold, whatever the pixels are."""
        ...

    def beside_name(self, sample_index: int) -> str | None:
        """The name of a sample's file beside the shard's table, or None where a shard is one object."""
        ...

    def writer(self, provenance: Mapping[str, str], put: Put = no_objects) -> ShardWriter:
        """Start a shard; the same batches and provenance always give the same bytes.

        ``put`` takes the files beside it as they are made, each once. A shard's own bytes vouch for them.
        """
        ...

    def reader(self, data: bytes, get: Get = no_objects) -> ShardReader:
        """Open a shard, whose files ``get`` fetches, from several threads.

        Raises:
            DatasetError: the bytes are not a whole shard of this format and schema; later, a file is not what they say.
        """
        ...
