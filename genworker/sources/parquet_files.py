"""The Parquet files of a split: their footers, and single row groups of them, read by byte range through a store.

In: a URL. Out: pyarrow's metadata and Arrow tables, in the order of the files' keys. It knows nothing of images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from genworker.errors import SourceError
from genworker.sources.shard_files import DigestCheck, RangeFile, files_of_split

if TYPE_CHECKING:
    from genworker.sources.base import Split
    from genworker.stores.base import ObjectInfo

_NUM_THREADS = 16

# What one row group may ask for. A few bytes can stand for any number of rows, and a small file can say that it unpacks
# to anything; encoded images do not compress, so an honest file unpacks to little more than its own size. A footer that lies
# passes: each page has a header of its own, which pyarrow alone reads, and which may ask for 2 GiB.
MAX_ROWS = 2**20
MAX_BYTES = 2**28
_MAX_RATIO = 4


class ParquetFiles:
    """The Parquet files of one split below a URL; ``footers[i]`` is pyarrow's metadata of ``infos[i]``.

    ``remarks`` tells of others that are not read, see `base.Source`.

    Raises:
        SourceError: a file is damaged, or a row group has more than ``MAX_ROWS`` rows, or unpacks to more than
            ``MAX_BYTES`` and more than four times its file.
    """

    def __init__(self, url: str, split: Split) -> None:
        self.url = url
        self.store, self.infos, self.remarks = files_of_split(url, split, "parquet")
        self._check = DigestCheck(self.store)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            self.footers: list[Any] = list(pool.map(self._footer, self.infos))

    def read_row_group(self, file: int, row_group: int, columns: list[str], binary: str | None = None) -> Any:
        """Fetch some columns of one row group as a pyarrow Table; raises SourceError for a damaged or changed file.

        ``binary`` names one of them, of bytes, that comes dictionary-encoded: a value that is stored once and named by a
        thousand rows is in memory once.
        """
        info, encoded = self.infos[file], [binary] if binary else None
        self._check(info)
        try:
            with pq.ParquetFile(
                RangeFile(self.store, info),
                metadata=self.footers[file],
                read_dictionary=encoded,
                pre_buffer=True,
                page_checksum_verification=True,  # of pages that have one
            ) as parquet:
                return parquet.read_row_group(row_group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError, KeyError) as err:  # names may be no text
            raise SourceError(f"{self.url}: {info.key}: row group {row_group} cannot be read: {err}") from err

    def _footer(self, info: ObjectInfo) -> Any:
        try:
            footer = pq.read_metadata(RangeFile(self.store, info))
        except (pa.ArrowException, OSError, ValueError) as err:  # names may be no text
            raise SourceError(f"{self.url}: {info.key} ({info.size} bytes) is no whole Parquet file: {err}") from err
        limit = max(MAX_BYTES, _MAX_RATIO * info.size)
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            if not (0 <= group.num_rows <= MAX_ROWS and group.total_byte_size <= limit):
                raise SourceError(
                    f"{self.url}: {info.key} ({info.size} bytes): row group {number} has {group.num_rows} rows that unpack to "
                    f"{group.total_byte_size} bytes; the limits are {MAX_ROWS} rows and {limit} bytes, because a row group "
                    "is held in memory whole: write the file with smaller row groups"
                )
        return footer
