"""Encoded images in Parquet: one file, or a folder or s3:// prefix of files, a genworker dataset included.

In: an image column (bytes, or Hugging Face's struct of bytes and path) and perhaps a column of class numbers. Out:
images by row. Footers are read first; row groups when one of their images is wanted, and kept in a limited cache.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from genworker.config import digest_of
from genworker.errors import CorruptImageError, SourceError
from genworker.sources.base import UNLABELLED, ResizedConfig, SourceConfig, labels_must, require_url
from genworker.sources.blocks import BlockSource
from genworker.sources.encoded import EncodedImage
from genworker.sources.parquet_files import ParquetFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from genworker.schema import Int64Array

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
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
        self._image_column, self._label_column = choose_columns(url, schemas[0], config)
        for info, schema in zip(self._files.infos, schemas, strict=True):
            _check_types(f"{url}: {info.key}", schema, self._image_column, self._label_column)
        self._is_struct = [pa.types.is_struct(schema.field(self._image_column).type) for schema in schemas]
        self._row_groups = [
            (file, group) for file, footer in enumerate(self._files.footers) for group in range(footer.num_row_groups)
        ]
        metadata = [self._files.footers[file].row_group(group) for file, group in self._row_groups]
        rows = np.array([group.num_rows for group in metadata], np.int64)
        if not rows.sum():
            raise SourceError(f"{url}: its {len(self._files.infos)} Parquet files hold no rows")
        class_names = self._agreed_class_names(schemas)
        super().__init__(
            url=url,
            schema=config.image_schema(self._num_classes(config.num_classes, class_names), class_names),
            rows=rows,
            # Of all columns. What the footer says of single ones is not looked at: where it is damaged, pyarrow does not
            # raise but ends the process.
            sizes=np.array([max(0, group.total_byte_size) for group in metadata], np.int64),
            limit=config.limit,
            max_corrupt=config.max_corrupt,
            cache_bytes=config.cache_bytes,
        )
        self.remarks = self._files.remarks

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
        column = table[self._label_column]
        where = f"{self._files.url}: {self._files.infos[file].key}: column {self._label_column}"
        if column.null_count:
            raise SourceError(
                f"{where}: holds {column.null_count} nulls; every image needs a class number, or label_column: none"
            )
        labels: Int64Array = column.to_numpy().astype(np.int64)
        wrong = labels[(labels < 0) | (labels >= self.schema.num_classes)]
        if wrong.size:
            raise SourceError(
                f"{where}: holds {wrong[0]}; {labels_must(self.schema.num_classes)}, or label_column: none"
            )
        return labels

    def _agreed_class_names(self, schemas: Sequence[Any]) -> tuple[str, ...]:
        """The class names of all files; raises SourceError where two differ, for then their numbers mean other things."""
        named = [_class_names(schema.metadata or {}, self._label_column) for schema in schemas]
        other = next((index for index, names in enumerate(named) if names != named[0]), None)
        if other is not None:
            keys = [self._files.infos[index].key for index in (0, other)]
            raise SourceError(
                f"{self._files.url}: column {self._label_column}: {keys[0]} has the class names {list(named[0])}, {keys[1]} "
                f"has {list(named[other])}; all files need the same, in the same order"
            )
        return named[0]

    def _num_classes(self, asked: int | None, class_names: Sequence[str]) -> int:
        where = f"{self._files.url}: column {self._label_column}"
        if self._label_column is None:
            if asked:
                raise SourceError(f"{self._files.url}: num_classes {asked}: there is no label column; set label_column")
            return 0
        if class_names:
            if asked not in (None, len(class_names)):
                raise SourceError(f"{where}: num_classes {asked}: it has {len(class_names)} class names; leave it out")
            return len(class_names)
        if asked:
            return asked
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            return 1 + max(pool.map(self._largest_label, range(len(self._row_groups))))

    def _largest_label(self, group: int) -> int:
        file, number = self._row_groups[group]
        if not self._files.footers[file].row_group(number).num_rows:
            return 0
        column = self._files.read_row_group(file, number, [str(self._label_column)])[self._label_column]
        return int(pc.max(column).as_py() or 0)


def choose_columns(url: str, schema: Any, config: ParquetConfig) -> tuple[str, str | None]:
    """The image column and the label column (None: unlabelled): those asked for, or those with a usual name."""
    labelled = config.label_column != UNLABELLED
    for key in ("image_column", "label_column") if labelled else ("image_column",):
        if (asked := getattr(config, key)) is not None and asked not in schema.names:
            raise SourceError(f"{url}: {key} {asked!r}: there is no such column; it has {', '.join(schema.names)}")
    image = config.image_column or next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if image is None:
        raise SourceError(
            f"{url}: has no column called {' or '.join(_IMAGE_COLUMNS)}; set image_column to one of "
            f"{', '.join(schema.names) or '(no columns)'}"
        )
    if not labelled:
        return image, None
    return image, config.label_column or next((name for name in _LABEL_COLUMNS if name in schema.names), None)


def _check_types(where: str, schema: Any, image: str, label: str | None) -> None:
    if (schema.metadata or {}).get(b"genworker.image.codec") == b"raw":
        raise SourceError(
            f"{where}: holds raw pixels, not image files; generate the dataset with codec png to train on it"
        )
    absent = [name for name in (image, label) if name is not None and name not in schema.names]
    if absent:
        raise SourceError(
            f"{where}: has no column {absent[0]!r}, which the first file has; all files need the same columns"
        )
    double = [name for name in (image, label) if name is not None and schema.names.count(name) > 1]
    if double:
        raise SourceError(f"{where}: has {schema.names.count(double[0])} columns called {double[0]!r}; name them apart")
    type_ = schema.field(image).type
    encoded = type_
    if pa.types.is_struct(type_):
        encoded = next((field.type for field in type_ if field.name == "bytes"), type_)
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise SourceError(
            f"{where}: column {image!r} is {type_}; images are read from encoded bytes (binary, or struct<bytes, path>)"
        )
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise SourceError(
            f"{where}: column {label!r} is {schema.field(label).type}; labels are class numbers (integers): convert "
            "it, name another label_column, or train without labels (label_column: none)"
        )


def _class_names(metadata: Mapping[bytes, bytes], label: str | None) -> tuple[str, ...]:
    """The class names that Hugging Face's features give the label column, or none."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        return tuple(str(name) for name in feature.get("names") or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        # Foreign metadata may say anything; without names the classes are numbers.
        return ()
