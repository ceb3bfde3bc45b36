"""Encoded images in Parquet: one file, or a folder or s3:// prefix of files, a genworker dataset included.

In: an image column (bytes, or Hugging Face's struct of bytes and path) and perhaps a column of class numbers. Out:
images by row. Footers are read first; row groups when one of their images is wanted, and kept in a limited cache.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genworker.config import digest_of
from genworker.errors import CorruptImageError, SourceError
from genworker.sources.base import ResizedConfig, SourceConfig, labels_must, require_url
from genworker.sources.blocks import BlockSource
from genworker.sources.encoded import EncodedImage
from genworker.sources.parquet_columns import agreed_class_names, check_types, choose_columns, class_names_of
from genworker.sources.parquet_files import ParquetFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.schema import Int64Array

_NUM_THREADS = 16


class ParquetConfig(ResizedConfig):
    """Parquet files with encoded images; files named after splits (train-..., test/...) are told apart."""

    name: Literal["parquet"] = "parquet"
    image_column: str | None = Field(None, description="found by itself when it is called image or img")
    label_column: str | None = Field(
        None,
        description="found by itself when it is called label, labels or fine_label; none: train without labels",
    )
    num_classes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="without it: as many as the label column has class names, else its largest label + 1"
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        2**29,
        description="row groups that each worker process keeps in memory, half for those that images are drawn from and half "
        "for the next ones; larger data is shuffled as far as this reaches",
    )


@dataclass(frozen=True)
class RowGroup:
    """Encoded images (Arrow dictionary of bytes, null where there is none) and labels (int64 [n], or None) of a row group."""

    images: Any
    labels: Int64Array | None

    @property
    def nbytes(self) -> int:
        """Memory that the images take."""
        return int(self.images.nbytes)

    def image(self, row: int) -> EncodedImage:
        """One row; raises CorruptImageError where it holds no bytes."""
        data = self.images[row].as_py()
        if data is None:
            raise CorruptImageError("holds no bytes (null, or only a path)")
        return EncodedImage(data, 0 if self.labels is None else int(self.labels[row]))


class ParquetSource(BlockSource[RowGroup]):
    """Rows of Parquet files."""

    Config: ClassVar[type[SourceConfig]] = ParquetConfig

    def __init__(self, config: ParquetConfig) -> None:
        url = require_url(config, "a Parquet file, or a folder or s3:// prefix of them")
        self._files = ParquetFiles(url, config.split)
        schemas = [footer.schema.to_arrow_schema() for footer in self._files.footers]
        keys = [info.key for info in self._files.infos]
        self._image_column, self._label_column = choose_columns(
            url, dict(zip(keys, schemas, strict=True)), config.image_column, config.label_column
        )
        for key, schema in zip(keys, schemas, strict=True):
            check_types(f"{url}: {key}", schema, self._image_column, self._label_column)
        self._is_struct = [pa.types.is_struct(schema.field(self._image_column).type) for schema in schemas]
        self._row_groups = [
            (file, group) for file, footer in enumerate(self._files.footers) for group in range(footer.num_row_groups)
        ]
        metadata = [self._files.footers[file].row_group(group) for file, group in self._row_groups]
        rows = np.array([group.num_rows for group in metadata], np.int64)
        if not rows.sum():
            raise SourceError(f"{url}: its {len(self._files.infos)} Parquet files hold no rows")
        named = [class_names_of(schema.metadata or {}, self._label_column) for schema in schemas]
        self._class_names, unnamed = agreed_class_names(f"{url}: column {self._label_column}", keys, named)
        super().__init__(
            url=url,
            schema=config.image_schema(self._num_classes(config.num_classes, unnamed), self._class_names),
            rows=rows,
            # Of all columns. What the footer says of single ones is not looked at: where it is damaged, pyarrow does not
            # raise but ends the process.
            sizes=np.array([max(0, group.total_byte_size) for group in metadata], np.int64),
            limit=config.limit,
            max_corrupt=config.max_corrupt,
            cache_bytes=config.cache_bytes,
        )
        self.remarks = self._files.remarks
        if unnamed:
            self.remarks += (
                f"{url}: column {self._label_column}: files without class names: {len(unnamed)}, {keys[unnamed[0]]} first; "
                "their labels are read as numbers of the classes that other files name: correct them where they mean others",
            )

    def digest(self) -> str:
        """SHA-256 over the key and size of every file, the columns, and the number of rows that are used."""
        files = [[info.key, info.size] for info in self._files.infos]
        return digest_of([files, self._image_column, self._label_column, len(self)])

    def _name(self, index: int) -> str:
        number, row = self._locate(index)
        file, group = self._row_groups[number]
        before = sum(self._files.footers[file].row_group(other).num_rows for other in range(group))
        return f"{self._files.infos[file].key} row {before + row}"

    def _fetch_block(self, number: int) -> RowGroup:
        file, group = self._row_groups[number]
        # Of a struct the bytes alone: nobody looks at the path.
        image = f"{self._image_column}.bytes" if self._is_struct[file] else self._image_column
        columns = [image, *([self._label_column] if self._label_column else [])]
        table = self._files.read_row_group(file, group, columns, binary=image)
        images = table[self._image_column]
        if self._is_struct[file]:
            images = pc.struct_field(images, "bytes")
        return RowGroup(images, self._checked_labels(file, table))

    def _checked_labels(self, file: int, table: Any) -> Int64Array | None:
        if self._label_column is None:
            return None
        labels: Int64Array = self._labels(file, table, self.schema.num_classes).astype(np.int64)
        return labels

    def _labels(self, file: int, table: Any, num_classes: int | None) -> Any:
        """Labels of a file (integers of any kind [n]), without nulls, in [0, num_classes), or from 0 on for None."""
        column = table[self._label_column]
        where = f"{self._files.url}: {self._files.infos[file].key}: column {self._label_column}"
        if column.null_count:
            raise SourceError(
                f"{where}: holds {column.null_count} nulls; every image needs a class number, or label_column: none"
            )
        labels = column.to_numpy()
        wrong = labels[(labels < 0) | (labels >= num_classes)] if num_classes is not None else labels[labels < 0]
        if wrong.size:
            rule = labels_must(num_classes or 0)
            if self._class_names:
                rule = f"labels must lie in [0, {num_classes}), the number of class names: correct them"
            raise SourceError(f"{where}: holds {wrong[0]}; {rule}, or label_column: none")
        return labels

    def _num_classes(self, asked: int | None, unnamed: Sequence[int]) -> int:
        """How many classes there are; ``unnamed`` are the files without class names where others have some."""
        where = f"{self._files.url}: column {self._label_column}"
        if self._label_column is None:
            if asked:
                raise SourceError(f"{self._files.url}: num_classes {asked}: there is no label column; set label_column")
            return 0
        if num_names := len(self._class_names):
            if asked not in (None, num_names):
                raise SourceError(f"{where}: num_classes {asked}: it has {num_names} class names; leave it out")
            if asked is None:  # one that does not fit should not be met in the middle of a run
                self._largest_label([n for n, (file, _) in enumerate(self._row_groups) if file in unnamed], num_names)
            return num_names
        return asked or 1 + self._largest_label(range(len(self._row_groups)), None)

    def _largest_label(self, groups: Sequence[int], num_classes: int | None) -> int:
        """The largest label of some row groups, 0 where they have no rows, once all are read; see `_labels`."""

        def largest(group: int) -> int:
            file, number = self._row_groups[group]
            if not self._files.footers[file].row_group(number).num_rows:
                return 0
            table = self._files.read_row_group(file, number, [str(self._label_column)])
            return int(self._labels(file, table, num_classes).max())

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return max(pool.map(largest, groups), default=0)
