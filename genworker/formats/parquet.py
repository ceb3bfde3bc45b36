"""Parquet shards: one row per sample, in columns sample_index, image, and those of label, latents and score that are wanted.

In: `SampleBatch`es and a codec. Out: the bytes of one Parquet file, the same however the batches were cut. With a codec
whose bytes are image files, the image column is what Hugging Face calls Image: struct<bytes: binary, path: string>;
else it is plain binary, and the file's metadata says how to read it. It never touches a store.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genworker.errors import DatasetError
from genworker.formats import columns
from genworker.formats.base import no_objects
from genworker.formats.checks import check_samples
from genworker.formats.columns import as_dataset_error
from genworker.formats.opening import open_parquet, refuse_longer
from genworker.schema import NO_EXTRAS, SampleBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genworker.codecs.base import Codec
    from genworker.formats.base import Get, Put
    from genworker.schema import Extras, ImageSchema, Int64Array

# Readers hold a row group in memory and split work by row groups: large ones break viewers, few ones starve workers.
_ROW_GROUP_BYTES = 64 * 2**20
_MIN_ROW_GROUPS = 4
_MIN_ROWS_FOR_SPLIT = 4 * 64

# Arrow's binary arrays have 32-bit offsets, and `pyarrow.parquet.read_table` cannot split one inside a struct.
_MAX_IMAGE_BYTES = 2**31 - 1

_DECODE_ROWS = 1024
_DECODE_BYTES = 64 * 2**20


class ParquetFormat:
    """Follows `base.Format`."""

    name: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = ".parquet"
    arrow: ClassVar[str | None] = "parquet"
    library = f"pyarrow {pa.__version__}"

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras = NO_EXTRAS) -> None:
        self._schema = schema
        self._codec = codec
        self._extras = extras
        image = pa.binary()
        if codec.is_image_file:
            image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rest = columns.fields(schema, extras)
        self._columns = pa.schema({"sample_index": rest.pop("sample_index"), "image": image, **rest})

    def max_samples_per_shard(self) -> int:
        """How many images fit into 2 GiB, if each is as large as the codec can make it, or their latents do."""
        return _MAX_IMAGE_BYTES // max(self._codec.max_bytes, 4 * self._extras.latent_dim)

    def beside_name(self, sample_index: int) -> str | None:
        """Nothing lies beside such shards."""
        del sample_index
        return None

    def writer(self, provenance: Mapping[str, str], put: Put = no_objects) -> ParquetShardWriter:
        """Start a shard."""
        del put
        described = self._columns.with_metadata(
            columns.metadata(self._features(), self._schema, self._codec, provenance)
        )
        return ParquetShardWriter(self._schema, self._codec, self._extras, described)

    def reader(self, data: bytes, get: Get = no_objects) -> ParquetShardReader:
        """Open a shard; raises DatasetError when the bytes are not a whole Parquet file with these columns."""
        del get
        return ParquetShardReader(self._codec, self._extras, self._columns, data, self.max_samples_per_shard())

    def _features(self) -> dict[str, Any]:
        # What `datasets` reads to give PIL images and class names instead of bytes and numbers.
        rest = columns.features(self._schema, self._extras)
        is_file = self._codec.is_image_file
        image = {"_type": "Image"} if is_file else {"dtype": "binary", "_type": "Value"}
        return {"sample_index": rest.pop("sample_index"), "image": image, **rest}


class ParquetShardWriter:
    """Follows `base.ShardWriter`: holds encoded images until `close`, which alone decides where row groups end."""

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras, described: pa.Schema) -> None:
        self._schema = schema
        self._codec = codec
        self._extras = extras
        self._columns = described
        self._numbers = columns.ColumnBuffer()
        self._images: list[bytes] = []
        self._closed = False

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples, encoded here unless that was done before.

        Raises:
            ValueError: pixels of another shape; labels, latents or scores missing, not wanted, or impossible.
        """
        check_samples(batch, self._schema, self._extras)
        self._images.extend(encoded or map(self._codec.encode, batch.pixels))
        self._numbers.add(batch)

    def close(self) -> bytes:
        """Return the Parquet file; raises ValueError when nothing was written."""
        if self._closed or not self._images:
            raise ValueError("the shard was closed before" if self._closed else "a shard holds at least one sample")
        self._closed = True
        numbers = self._numbers.joined()
        sink = io.BytesIO()
        # Encoded images neither compress nor repeat, and bounds of their bytes help nobody.
        is_file = self._codec.is_image_file
        image = {"image.bytes": "none", "image.path": "zstd"} if is_file else {"image": "none"}
        with pq.ParquetWriter(sink, self._columns, **columns.write_options(numbers, image)) as writer:
            start = 0
            for stop in row_group_ends([len(image) for image in self._images]):
                writer.write_table(self._table(numbers, start, stop), row_group_size=stop - start)
                # Written images are dropped at once: a shard is in memory about once, not twice.
                self._images[start:stop] = [b""] * (stop - start)
                start = stop
        self._images.clear()
        return sink.getvalue()

    def _table(self, numbers: dict[str, Any], start: int, stop: int) -> pa.Table:
        images = columns.byte_strings(self._images[start:stop], pa.binary())
        if self._codec.is_image_file:
            indices = numbers["sample_index"][start:stop].tolist()
            paths = [f"{index:012d}.{self._codec.extension}".encode() for index in indices]
            names = columns.byte_strings(paths, pa.string())
            images = pa.StructArray.from_arrays([images, names], names=["bytes", "path"])
        found = {"image": images, **columns.arrays(numbers, start, stop)}
        return pa.Table.from_arrays([found[name] for name in self._columns.names], schema=self._columns)


def row_group_ends(sizes: list[int]) -> list[int]:
    """Where row groups end, as rising row numbers, for images of ``sizes`` bytes.

    As many groups of about equal bytes as keep each near 64 MiB or below, and four at least from 256 rows on.
    """
    total = np.cumsum(sizes)
    groups = max(-(-int(total[-1]) // _ROW_GROUP_BYTES), _MIN_ROW_GROUPS if len(sizes) >= _MIN_ROWS_FOR_SPLIT else 1)
    targets = [int(total[-1]) * group // groups for group in range(1, groups)]
    ends = {int(end) + 1 for end in np.searchsorted(total, targets)}
    return sorted(ends | {len(sizes)})


class ParquetShardReader:
    """Follows `base.ShardReader`; keeps the row groups that `read_row` touched, still encoded."""

    def __init__(self, codec: Codec, extras: Extras, expected: pa.Schema, data: bytes, max_rows: int) -> None:
        self._codec = codec
        self._extras = extras
        # Of the image's struct the bytes alone: its path is for other readers.
        image = "image.bytes" if codec.is_image_file else "image"
        self._read = [image if name == "image" else name for name in expected.names]
        self._file, seen = open_parquet(data, expected, [image], max_rows)
        with as_dataset_error("cannot be opened"):
            self._metadata = columns.text_metadata(seen)
        footer = self._file.metadata
        columns.check_rows(self.provenance, footer.num_rows)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if min(sizes, default=1) < 1 or sum(sizes) != footer.num_rows:
            raise DatasetError(f"Parquet shard: its row groups have {sizes} rows, it says {footer.num_rows} in all")
        self._ends = np.cumsum(sizes)
        self._groups: dict[int, pa.RecordBatch] = {}
        self._lock = threading.Lock()  # pyarrow's file is for one thread at a time
        self.num_bytes = len(data)

    @property
    def provenance(self) -> Mapping[str, str]:
        """What `ParquetFormat.writer` was given."""
        return columns.provenance(self._metadata)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def sample_indices(self) -> Int64Array:
        """All sample indices in stored order, int64 [N]."""
        return self._integers("sample_index")

    def labels(self) -> Int64Array | None:
        """All labels in stored order, int64 [N], without decoding an image; None for unlabelled data."""
        return self._integers("label") if "label" in self._file.schema_arrow.names else None

    def batches(self, first_row: int = 0) -> Iterator[SampleBatch]:
        """Decode and yield samples in stored order, from ``first_row`` on; raises DatasetError for a damaged page or image."""
        first_group = int(np.searchsorted(self._ends, first_row, side="right"))
        groups = list(range(first_group, len(self._ends)))
        row = int(self._ends[first_group - 1]) if first_group else 0
        step = max(1, min(_DECODE_ROWS, _DECODE_BYTES // self._codec.max_bytes))
        with as_dataset_error("cannot be read"):
            records = self._file.iter_batches(batch_size=step, row_groups=groups, columns=self._read, use_threads=False)
        while row < len(self):
            with as_dataset_error("cannot be read"), self._lock:
                record = next(records, None)
            # A damaged page can make pyarrow stop early, without a word.
            if record is None:
                raise DatasetError(f"Parquet shard: {row} of {len(self)} rows can be read; the shard is damaged")
            # The rows before the first that is wanted, of its row group alone, are read but not decoded.
            wanted = record.slice(max(0, first_row - row))
            row += record.num_rows
            if wanted.num_rows:
                yield self._decode(wanted)

    def read_row(self, row: int) -> SampleBatch:
        """Decode the one sample at position ``row``; raises IndexError outside [0, N)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the shard has {len(self)}")
        group = int(np.searchsorted(self._ends, row, side="right"))
        with as_dataset_error("cannot be read"), self._lock:
            if group not in self._groups:
                table = self._file.read_row_group(group, columns=self._read, use_threads=False)
                self._groups[group] = table.combine_chunks().to_batches()[0]
        first = int(self._ends[group - 1]) if group else 0
        return self._decode(self._groups[group].slice(row - first, 1))

    def _integers(self, name: str) -> Int64Array:
        with as_dataset_error("cannot be read"), self._lock:
            column = self._file.read([name], use_threads=False).column(name)
        return columns.to_int64(column.combine_chunks(), name)

    def _decode(self, record: pa.RecordBatch) -> SampleBatch:
        images = record.column("image")
        if self._codec.is_image_file:
            images = images.field("bytes")
        refuse_longer(images, self._codec.max_bytes, "an image")
        encoded = images.to_pylist()
        if None in encoded:
            raise DatasetError("Parquet shard: an image is null")
        return SampleBatch(
            sample_index=columns.read_index(record),
            pixels=np.stack([self._codec.decode(data) for data in encoded]),
            **columns.read_rest(record, self._extras),
        )
