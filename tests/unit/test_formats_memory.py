"""A shard from a stranger that is small takes little memory, whatever it says: it is read or refused."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genworker import codecs, formats
from genworker.errors import DatasetError
from genworker.schema import ImageSchema
from tests.memory import growth

SCHEMA = ImageSchema(channels=3, height=6, width=5)
ROWS = 400


def same(value: bytes, kind: Any = None) -> Any:
    """A column that names one value ``ROWS`` times, made without making them."""
    values = pa.array([value]).cast(kind or pa.binary())
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), values)


def parquet_file(columns: dict[str, Any], compression: str) -> bytes:
    """A file without Arrow's own schema, so that nothing tells that the columns were dictionaries."""
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns), sink, compression=compression, dictionary_pagesize_limit=2**22, store_schema=False
    )
    return sink.getvalue()


def image_shard(image: bytes, compression: str = "zstd") -> bytes:
    images = pa.StructArray.from_arrays([same(image), same(b"a.png", pa.string())], names=["bytes", "path"])
    return parquet_file({"sample_index": pa.array(range(ROWS), pa.int64()), "image": images}, compression)


def maker(format: str) -> Any:
    return formats.make(format, SCHEMA, codecs.make("png", SCHEMA))


def test_an_image_that_all_rows_name_is_in_memory_once() -> None:
    """Hundreds of images of a megabyte in a file of a few kilobytes are refused before they are unpacked."""
    data = image_shard(bytes(1_000_000))
    assert len(data) < 5_000
    with growth() as grown, pytest.raises(DatasetError, match="unpack to"):
        maker("parquet").reader(data)
    assert grown.mib < 20
    # Random bytes do not compress, so the size of the file alone does not tell.
    data = image_shard(b"".join(i.to_bytes(4, "big") for i in range(2**18)), "none")
    with growth() as grown:
        reader = maker("parquet").reader(data)
        with pytest.raises(DatasetError, match="an image has 1048576 bytes; none of this dataset has more than"):
            next(iter(reader.batches()))
        with pytest.raises(DatasetError, match="an image has 1048576 bytes"):
            reader.read_row(ROWS - 1)
    assert grown.mib < 40


@pytest.mark.parametrize("name", ["file_name", "sha256"])
def test_long_names_of_files_are_refused(name: str) -> None:
    """A text of a megabyte that all rows of a table of files name is in memory once, and refused."""
    text = {"file_name": "a.png", "sha256": "0" * 64} | {name: "".join(map(str, range(200_000)))}
    numbers = pa.array(range(ROWS), pa.int64())
    names, digests = (same(value.encode(), pa.string()) for value in text.values())
    data = parquet_file({"file_name": names, "sample_index": numbers, "size": numbers, "sha256": digests}, "none")
    with growth() as grown, pytest.raises(DatasetError, match=f"a {name} has 1088890 bytes"):
        maker("files").reader(data)
    assert grown.mib < 40


def test_more_rows_than_a_shard_can_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows is compared with what fits into a shard before any of them is read."""
    monkeypatch.setattr(formats.get("parquet"), "max_samples_per_shard", lambda _: ROWS - 1)
    with pytest.raises(DatasetError, match=f"says that it has {ROWS} rows; at most {ROWS - 1} fit"):
        maker("parquet").reader(image_shard(b"x"))
