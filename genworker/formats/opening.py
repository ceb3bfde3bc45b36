"""A Parquet file in memory, opened so that a small one cannot ask for much memory.

In: bytes that anybody may have written. Out: pyarrow's file, whose values are held once however many rows name them. What
genworker writes is stored as it is but for a few numbers per row, so a footer that promises much more is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genworker.errors import DatasetError
from genworker.formats.columns import as_dataset_error, check_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

# Index, label, the name of a file and its digest are compressed; they take less than this. Headers of pages are few.
_ROW_BYTES = 256
_HEADER_BYTES = 2**16


def open_parquet(data: bytes, columns: Any, binary: Sequence[str], max_rows: int) -> tuple[Any, Any]:
    """Open a shard with these ``columns`` (a `pyarrow.Schema`), of which those named by ``binary`` come dictionary-encoded.

    Returns:
        The `pyarrow.parquet.ParquetFile`, and its schema with the file's metadata.

    Raises:
        DatasetError: it is no whole Parquet file, has other columns, or says that it holds more rows or bytes than it can.
    """
    with as_dataset_error("cannot be opened"):
        footer = pq.read_metadata(pa.BufferReader(data))
        seen = footer.schema.to_arrow_schema()
    check_schema(seen, columns)
    if not 0 <= footer.num_rows <= max_rows:
        raise DatasetError(f"Parquet shard: it says that it has {footer.num_rows} rows; at most {max_rows} fit")
    unpacked = sum(max(0, footer.row_group(group).total_byte_size) for group in range(footer.num_row_groups))
    if unpacked > (limit := len(data) + _ROW_BYTES * footer.num_rows + _HEADER_BYTES):
        raise DatasetError(
            f"Parquet shard: its {len(data)} bytes unpack to {unpacked}; {footer.num_rows} rows that genworker wrote unpack "
            f"to {limit} at most"
        )
    with as_dataset_error("cannot be opened"):
        source = pa.BufferReader(data)
        file = pq.ParquetFile(source, metadata=footer, read_dictionary=list(binary), page_checksum_verification=True)
    return file, seen


def refuse_longer(column: Any, max_bytes: int, what: str) -> None:
    """Raise DatasetError where a value of a dictionary-encoded column (array or chunks) has more than ``max_bytes``."""
    for chunk in getattr(column, "chunks", [column]):
        if (longest := pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > max_bytes:
            raise DatasetError(
                f"Parquet shard: {what} has {longest} bytes; none of this dataset has more than {max_bytes}"
            )
