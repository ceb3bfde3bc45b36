"""Plain image files and a table of them: one file per sample, <sample index>.<extension>, and metadata.parquet beside them.

In: `SampleBatch`es and a codec. Out: the files, one by one as they are made, and at last the bytes of the table: file name,
sample_index, size and SHA-256 of each file, and those of label, latents and score that are wanted. It is what Hugging Face
calls an ImageFolder. The table vouches for every file, so its digest is the shard's.
"""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
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

_MAX_TABLE_BYTES = 2**31 - 1
_MAX_TEXT_BYTES = 64  # of a file's name, and of its digest
_ROW_BYTES = 256  # of a row without latents; it takes about 60
_ROWS_PER_GROUP = 2**16
_DECODE_ROWS = 256
# A file over a network is waiting, mostly.
_NUM_THREADS = 8


class FilesFormat:
    """Follows `base.Format`."""

    name: ClassVar[str] = "files"
    suffix: ClassVar[str] = "/metadata.parquet"
    arrow: ClassVar[str | None] = None
    library = f"pyarrow {pa.__version__}, files 1"

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras = NO_EXTRAS) -> None:
        self.schema, self.codec, self.extras = schema, codec, extras
        rest = columns.fields(schema, extras)
        self.columns = pa.schema({"file_name": pa.string(), **rest, "size": pa.int64(), "sha256": pa.string()})

    def max_samples_per_shard(self) -> int:
        """How many rows a table of 2 GiB surely has."""
        return _MAX_TABLE_BYTES // (_ROW_BYTES + 4 * self.extras.latent_dim)

    def beside_name(self, sample_index: int) -> str | None:
        """The name of a sample's file."""
        return f"{sample_index:012d}.{self.codec.extension}"

    def writer(self, provenance: Mapping[str, str], put: Put = no_objects) -> FilesShardWriter:
        """Start a shard, whose files go to ``put``."""
        features = columns.features(self.schema, self.extras)
        text = {"dtype": "string", "_type": "Value"}
        features = {"file_name": text, **features, "size": {"dtype": "int64", "_type": "Value"}, "sha256": text}
        described = self.columns.with_metadata(columns.metadata(features, self.schema, self.codec, provenance))
        return FilesShardWriter(self, described, put)

    def reader(self, data: bytes, get: Get = no_objects) -> FilesShardReader:
        """Open a shard; raises DatasetError when ``data`` is not a whole table with these columns and these names."""
        return FilesShardReader(self, data, get)


class FilesShardWriter:
    """Follows `base.ShardWriter`: files go out as they are encoded, what the table needs of them stays."""

    def __init__(self, format: FilesFormat, described: pa.Schema, put: Put) -> None:
        self._format = format
        self._columns = described
        self._put = put
        self._numbers = columns.ColumnBuffer()
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._digests: list[str] = []
        self._closed = False

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples, encoded here unless that was done before.

        Raises:
            ValueError: pixels of another shape; labels, latents or scores missing, not wanted, or impossible.
        """
        check_samples(batch, self._format.schema, self._format.extras)
        images = encoded or map(self._format.codec.encode, batch.pixels)
        for index, image in zip(batch.sample_index.tolist(), images, strict=True):
            name = self._format.beside_name(index)
            assert name is not None
            self._put(name, image)
            self._names.append(name)
            self._sizes.append(len(image))
            self._digests.append(hashlib.sha256(image).hexdigest())
        self._numbers.add(batch)

    def close(self) -> bytes:
        """Return the table; raises ValueError when nothing was written."""
        if self._closed or not self._names:
            raise ValueError("the shard was closed before" if self._closed else "a shard holds at least one sample")
        self._closed = True
        numbers = self._numbers.joined()
        found = {
            "file_name": columns.byte_strings([name.encode() for name in self._names], pa.string()),
            "size": columns.flat(np.array(self._sizes, np.int64)),
            "sha256": columns.byte_strings([digest.encode() for digest in self._digests], pa.string()),
            **columns.arrays(numbers, 0, len(self._names)),
        }
        sink = io.BytesIO()
        pq.write_table(
            pa.Table.from_arrays([found[name] for name in self._columns.names], schema=self._columns),
            sink,
            row_group_size=_ROWS_PER_GROUP,
            **columns.write_options(numbers, dict.fromkeys(("file_name", "size", "sha256"), "zstd")),
        )
        return sink.getvalue()


class FilesShardReader:
    """Follows `base.ShardReader`; holds the table, fetches files as they are wanted, and compares each with the table."""

    def __init__(self, format: FilesFormat, data: bytes, get: Get) -> None:
        self._codec, self._extras, self._get = format.codec, format.extras, get
        texts, max_rows = ["file_name", "sha256"], format.max_samples_per_shard()
        file, seen = open_parquet(data, format.columns, texts, max_rows)
        with as_dataset_error("cannot be opened"):
            self._metadata = columns.text_metadata(seen)
        with as_dataset_error("cannot be read"):
            table = file.read(use_threads=False)
            table.validate()
        columns.check_rows(self.provenance, len(table))
        for name in texts:
            refuse_longer(table.column(name), _MAX_TEXT_BYTES, f"a {name}")
        self._table = table.combine_chunks()
        self._indices = columns.to_int64(self._column("sample_index"), "sample_index")
        self._names: list[str] = self._column("file_name").to_pylist()
        self._digests: list[str] = self._column("sha256").to_pylist()
        self._sizes = columns.to_int64(self._column("size"), "size")
        # Names are those of the samples and no others, so no path leads anywhere else.
        for name, index in zip(self._names, self._indices.tolist(), strict=True):
            if name != format.beside_name(index):
                raise DatasetError(
                    f"files shard: sample {index} is said to lie in {name!r}; it is no shard of genworker"
                )
        if len(self) and not 0 <= self._sizes.min() <= self._sizes.max() <= self._codec.max_bytes:
            raise DatasetError(
                f"files shard: files are said to have {self._sizes.min()} to {self._sizes.max()} bytes; no image of this "
                f"dataset has more than {self._codec.max_bytes}"
            )
        self.num_bytes = len(data) + int(self._sizes.sum())

    @property
    def provenance(self) -> Mapping[str, str]:
        """What `FilesFormat.writer` was given."""
        return columns.provenance(self._metadata)

    def __len__(self) -> int:
        return len(self._indices)

    def sample_indices(self) -> Int64Array:
        """All sample indices in stored order, int64 [N]."""
        return self._indices.copy()

    def batches(self, first_row: int = 0) -> Iterator[SampleBatch]:
        """Fetch, decode and yield samples in stored order, from ``first_row`` on; raises DatasetError for a bad file."""
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for start in range(first_row, len(self), _DECODE_ROWS):
                rows = range(start, min(start + _DECODE_ROWS, len(self)))
                yield self._batch(rows.start, rows.stop, list(pool.map(self._image, rows)))

    def read_row(self, row: int) -> SampleBatch:
        """Fetch and decode the one sample at position ``row``; raises IndexError outside [0, N)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the shard has {len(self)}")
        return self._batch(row, row + 1, [self._image(row)])

    def _column(self, name: str) -> Any:
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _image(self, row: int) -> bytes:
        name = self._names[row]
        data = self._get(name)
        if len(data) != self._sizes[row]:
            raise DatasetError(f"{name} has {len(data)} bytes, the shard's table says {self._sizes[row]}")
        if (seen := hashlib.sha256(data).hexdigest()) != self._digests[row]:
            raise DatasetError(f"{name} has SHA-256 {seen}, the shard's table says {self._digests[row]}")
        return data

    def _batch(self, first: int, stop: int, encoded: list[bytes]) -> SampleBatch:
        record = self._table.slice(first, stop - first).combine_chunks().to_batches()[0]
        return SampleBatch(
            sample_index=columns.read_index(record),
            pixels=np.stack([self._codec.decode(data) for data in encoded]),
            **columns.read_rest(record, self._extras),
        )
