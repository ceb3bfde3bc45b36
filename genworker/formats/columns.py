"""The columns of samples in Arrow tables: sample_index, label, latents and score, from batches and back.

In: `SampleBatch`es. Out: columns of any stretch of them, their Arrow and Hugging Face types, and batches again, checked. It
knows nothing of images, which each format stores in its own way.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genworker.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genworker.codecs.base import Codec
    from genworker.schema import Extras, Float32Array, ImageSchema, Int64Array, SampleBatch

# Latents neither compress nor repeat.
_COMPRESSION = {"sample_index": "zstd", "label": "zstd", "latents.list.element": "none", "score": "none"}
_STATISTICS = ["sample_index", "label", "score"]

_PREFIX = "genworker."
_IMAGE_PREFIX = _PREFIX + "image."


def fields(schema: ImageSchema, extras: Extras) -> dict[str, Any]:
    """Arrow types by name, of the columns that such samples have; latents are lists, which every reader knows."""
    found = {"sample_index": pa.int64()}
    if schema.num_classes:
        found["label"] = pa.int64()
    if extras.latent_dim:
        found["latents"] = pa.list_(pa.float32())
    if extras.score:
        found["score"] = pa.float32()
    return found


def features(schema: ImageSchema, extras: Extras) -> dict[str, Any]:
    """The same as `datasets` writes it, which is where class names are."""
    found: dict[str, Any] = {"sample_index": {"dtype": "int64", "_type": "Value"}}
    if schema.num_classes:
        names = schema.class_names or tuple(str(label) for label in range(schema.num_classes))
        found["label"] = {"names": list(names), "_type": "ClassLabel"}
    if extras.latent_dim:
        # Newer versions call it List, and read the name that older ones know.
        found["latents"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    if extras.score:
        found["score"] = {"dtype": "float32", "_type": "Value"}
    return found


def metadata(
    features: dict[str, Any], schema: ImageSchema, codec: Codec, provenance: Mapping[str, str]
) -> dict[str, str]:
    """What stands in a file's key-value metadata: Hugging Face's types, how to read images, and the provenance."""
    image = {"codec": codec.name, "dtype": "uint8"}
    image |= {"height": str(schema.height), "width": str(schema.width), "channels": str(schema.channels)}
    return (
        {"huggingface": json.dumps({"info": {"features": features}})}
        | {_IMAGE_PREFIX + key: value for key, value in sorted(image.items())}
        | {_PREFIX + key: value for key, value in sorted(provenance.items())}
    )


def text_metadata(columns: Any) -> dict[str, str]:
    """The key-value metadata of an Arrow schema; raises ValueError where it is no text."""
    return {key.decode(): value.decode() for key, value in (columns.metadata or {}).items()}


def provenance(metadata: Mapping[str, str]) -> dict[str, str]:
    """The provenance that `metadata` was given."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in metadata.items()
        if key.startswith(_PREFIX) and not key.startswith(_IMAGE_PREFIX)
    }


def check_schema(seen: Any, expected: Any) -> None:
    """Raise DatasetError unless a file has the columns that it should."""
    if not seen.equals(expected, check_metadata=False):
        with as_dataset_error("cannot be opened"):  # names of columns may be no text
            columns = _one_line(seen)
        raise DatasetError(f"Parquet shard: columns are {columns}, expected {_one_line(expected)}")


def check_rows(provenance: Mapping[str, str], num_rows: int) -> None:
    """Raise DatasetError unless a file has as many rows as its provenance promises."""
    promised = provenance.get("num_samples")
    if promised is not None and promised != str(num_rows):
        raise DatasetError(f"Parquet shard: it has {num_rows} rows and says that it has {promised}")


class ColumnBuffer:
    """Collects the numbers of batches until the shard is closed."""

    def __init__(self) -> None:
        self._batches: dict[str, list[Any]] = {"sample_index": [], "label": [], "latents": [], "score": []}

    def add(self, batch: SampleBatch) -> None:
        """Append a batch."""
        values = (batch.sample_index, batch.labels, batch.latents, batch.scores)
        for kept, value in zip(self._batches.values(), values, strict=True):
            if value is not None:
                kept.append(value)

    def joined(self) -> dict[str, Any]:
        """Numpy arrays over all batches by column; those that the samples do not have are absent."""
        return {name: np.concatenate(kept) for name, kept in self._batches.items() if kept}


def arrays(joined: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Arrow arrays by column of rows [start, stop) of what `ColumnBuffer.joined` gave."""
    found = {}
    for name, values in joined.items():
        part = values[start:stop]
        if name == "latents":
            offsets = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
            found[name] = pa.ListArray.from_arrays(flat(offsets), flat(part.reshape(-1)))
        else:
            found[name] = flat(part)
    return found


def byte_strings(values: Sequence[bytes], kind: Any) -> Any:
    """An Arrow array of ``kind`` (binary or string) of fewer than 2^31 bytes in all."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])


def flat(values: Any) -> Any:
    """An Arrow array over a numpy array's own memory. `pa.array` would first import pandas, most of a second per actor."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def write_options(joined: dict[str, Any], others: dict[str, str]) -> dict[str, Any]:
    """How pyarrow.parquet writes these columns, and ``others`` with the compression that is named."""
    return {
        "compression": {name: kind for name, kind in _COMPRESSION.items() if name.partition(".")[0] in joined} | others,
        "use_dictionary": ["label"],
        "write_statistics": [name for name in _STATISTICS if name in joined],
        "write_page_index": True,
        "write_page_checksum": True,
        # Pages end where the content says so: stores that deduplicate see equal parts of two versions as equal.
        "use_content_defined_chunking": True,
    }


def read_index(record: Any) -> Int64Array:
    """The sample_index column, int64 [N]."""
    return to_int64(record.column("sample_index"), "sample_index")


def read_rest(record: Any, extras: Extras) -> dict[str, Any]:
    """Labels, latents and scores of a record batch, as `SampleBatch` takes them; raises DatasetError for nulls."""
    names = record.schema.names
    return {
        "labels": to_int64(record.column("label"), "label") if "label" in names else None,
        "latents": _latents(record.column("latents"), extras.latent_dim) if extras.latent_dim else None,
        "scores": _to_float32(record.column("score"), "score") if extras.score else None,
    }


def to_int64(column: Any, name: str) -> Int64Array:
    """A column as int64 [N]; raises DatasetError for nulls."""
    _refuse_nulls(column, name)
    # A copy, because Arrow's memory is read-only and goes away with the file.
    return np.array(column, dtype=np.int64)


def _to_float32(column: Any, name: str) -> Float32Array:
    _refuse_nulls(column, name)
    return np.array(column, dtype=np.float32)


def _latents(column: Any, latent_dim: int) -> Float32Array:
    _refuse_nulls(column, "latents")
    lengths = np.diff(np.array(column.offsets))
    if (lengths != latent_dim).any():
        raise DatasetError(f"Parquet shard: a sample has {lengths.max()} latents, the plan says {latent_dim}")
    return _to_float32(column.flatten(), "latents").reshape(len(column), latent_dim)


def _refuse_nulls(column: Any, name: str) -> None:
    if column.null_count:
        raise DatasetError(f"Parquet shard: column {name} has {column.null_count} nulls")


def _one_line(columns: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in columns)


@contextmanager
def as_dataset_error(what: str) -> Iterator[None]:
    """Turn what pyarrow raises for damaged files into a DatasetError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as err:
        raise DatasetError(f"Parquet shard: {what}: {err}; the shard is damaged or no Parquet file") from err
