"""The Parquet files of a split: their footers, and single row groups of them, read by byte range through a store.

In: a URL. Out: pyarrow's metadata and Arrow tables, in the order of the files' keys. It knows nothing of images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from genworker.errors import SourceError
from genworker.sources.shard_files import RangeFile, files_of_split

if TYPE_CHECKING:
    from genworker.sources.base import Split
    from genworker.stores.base import ObjectInfo

_NUM_THREADS = 16


class ParquetFiles:
    """The Parquet files of one split below a URL; ``footers[i]`` is pyarrow's metadata of ``infos[i]``."""

    def __init__(self, url: str, split: Split) -> None:
        self.url = url
        self.store, self.infos = files_of_split(url, split, "parquet")
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            self.footers: list[Any] = list(pool.map(self._footer, self.infos))

    def read_row_group(self, file: int, row_group: int, columns: list[str]) -> Any:
        """Fetch some columns of one row group as a pyarrow Table; raises SourceError for a damaged file."""
        info = self.infos[file]
        try:
            with pq.ParquetFile(RangeFile(self.store, info), metadata=self.footers[file], pre_buffer=True) as parquet:
                return parquet.read_row_group(row_group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as err:  # names may be no text
            raise SourceError(f"{self.url}: {info.key}: row group {row_group} cannot be read: {err}") from err

    def _footer(self, info: ObjectInfo) -> Any:
        try:
            return pq.read_metadata(RangeFile(self.store, info))
        except (pa.ArrowException, OSError, ValueError) as err:  # names may be no text
            raise SourceError(f"{self.url}: {info.key} ({info.size} bytes) is no whole Parquet file: {err}") from err
