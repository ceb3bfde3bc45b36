"""A finished dataset as a `pyarrow.dataset.Dataset` over the shards that its manifest names.

In: a store and a manifest. Out: a dataset that fetches what is asked of it, by byte range, through the store: so with its
credentials, from wherever it can read. It lists nothing, and compares the checksums of the pages that it reads, but no digests
of whole shards (`genworker verify` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from genworker import formats
from genworker.errors import UsageError
from genworker.sources.shard_files import RangeFile
from genworker.stores.base import ObjectInfo

if TYPE_CHECKING:
    from genworker.bulk.records import Manifest
    from genworker.stores.base import Store


def arrow_dataset(store: Store, manifest: Manifest) -> Any:
    """Open the shards of ``manifest``; what reads it meets pyarrow's OSError where a page is damaged.

    Raises:
        UsageError: they are of a format that Arrow does not read.
    """
    name = manifest.plan.format
    arrow = formats.get(name).arrow
    if arrow is None:
        able = ", ".join(other for other in formats.names() if formats.get(other).arrow)
        raise UsageError(
            f"{store.url}: its shards are {name}, which Arrow cannot read; iterate the dataset, or generate it again with "
            f"--format {able}"
        )
    files = pafs.PyFileSystem(ShardFiles(store, {entry.key: entry.num_bytes for entry in manifest.shards}))
    # Asked for by its name alone, Parquet's checksums are not compared.
    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    checked = {"parquet": pads.ParquetFileFormat(default_fragment_scan_options=options)}
    return pads.dataset([entry.key for entry in manifest.shards], filesystem=files, format=checked.get(arrow, arrow))


class ShardFiles(pafs.FileSystemHandler):  # type: ignore[misc]
    """The shards of a manifest as a read-only file system; paths are their keys."""

    def __init__(self, store: Store, sizes: dict[str, int]) -> None:
        self._store = store
        self._sizes = sizes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardFiles):
            return NotImplemented
        return self._store.url == other._store.url and self._sizes == other._sizes

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        """A name for messages."""
        return "genworker"

    def normalize_path(self, path: str) -> str:
        """Keys are normal already."""
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        """What the manifest knows of each path; no request is made."""
        return [
            pafs.FileInfo(path, pafs.FileType.File, size=self._sizes[path])
            if path in self._sizes
            else pafs.FileInfo(path, pafs.FileType.NotFound)
            for path in paths
        ]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        """The shards below a folder."""
        folder = selector.base_dir.rstrip("/")
        return self.get_file_info([key for key in self._sizes if key.startswith(f"{folder}/") or not folder])

    def open_input_file(self, path: str) -> Any:
        """A shard that fetches what is read of it; raises FileNotFoundError for what the manifest does not name."""
        if path not in self._sizes:
            raise FileNotFoundError(f"{self._store.url}/{path}: the manifest names no such shard")
        return pa.PythonFile(RangeFile(self._store, ObjectInfo(path, self._sizes[path], 0.0)), mode="r")

    def open_input_stream(self, path: str) -> Any:
        """As `open_input_file`."""
        return self.open_input_file(path)

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise OSError(f"{self._store.url}: a finished dataset is read-only")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse
