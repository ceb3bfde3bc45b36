"""WebDataset: tar shards, in which members of the same name and different extensions make up a sample.

In: one .tar file, or a folder or s3:// prefix of them, as the webdataset library, img2dataset or genworker write them. Out: the
image of each sample, and its label from ``.cls`` or ``.json``. Headers are read first; a stretch of samples when one of its
images is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from genworker.config import digest_of
from genworker.errors import CorruptImageError, SourceError
from genworker.sources.base import ResizedConfig, SourceConfig, labels_must, require_url
from genworker.sources.blocks import BlockSource
from genworker.sources.encoded import EncodedImage
from genworker.sources.shard_files import DigestCheck, files_of_split
from genworker.sources.tar import members
from genworker.sources.tar_index import find_rules, index_of
from genworker.sources.tar_samples import samples

if TYPE_CHECKING:
    from genworker.schema import Int64Array


class WebDatasetConfig(ResizedConfig):
    """Tar files with encoded images; files named after splits (train-..., test/...) are told apart."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"index"})  # it keeps what the data itself says

    name: Literal["webdataset"] = "webdataset"
    image_extension: str | None = Field(
        None, description="such as jpg or input.png; without it the first of png, jpg, jpeg, webp, bmp"
    )
    label_extension: str | None = Field(
        None,
        description="without it cls, or json where that holds a label; unlabelled where there is neither; none: train without "
        "labels",
    )
    label_key: str | None = Field(None, description="what holds the label in the JSON; without it label")
    num_classes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="without it the largest label + 1, for which all labels are read at the start"
    )
    index: str | None = Field(
        None,
        description="object, ending in .json, that keeps where the samples lie. It is made where it is missing. Without "
        "it every worker reads the headers of all shards when it starts",
    )
    block_bytes: Annotated[int, Field(ge=1)] = Field(2**23, description="at most, of samples that are fetched together")
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        2**29,
        description="samples that each worker process keeps in memory, half for those that images are drawn from and half for "
        "the next ones; larger data is shuffled as far as this reaches",
    )

    @field_validator("index")
    @classmethod
    def _absolute_index(cls, index: str | None) -> str | None:
        if index is None:
            return index
        # Beside the data and called .tar it would be taken for a shard the next time; a bucket alone is no object.
        _, is_url, place = index.partition("://")
        if not index.endswith(".json") or (is_url and "/" not in place):
            raise ValueError("must name an object that ends in .json, such as s3://bucket/samples.json, or be left out")
        if is_url:
            return index
        return str(Path(index).expanduser().absolute())


@dataclass(frozen=True)
class Stretch:
    """A stretch of a tar file; place (int64 [n, 2]: start and size, start -1 without an image) and label of each image."""

    data: bytes
    places: Int64Array
    labels: Int64Array

    @property
    def nbytes(self) -> int:
        """Memory that the samples take."""
        return len(self.data)

    def image(self, row: int) -> EncodedImage:
        """One image; raises CorruptImageError where the sample has none."""
        start, size = self.places[row].tolist()
        if start < 0:
            raise CorruptImageError("has no image")
        return EncodedImage(self.data[start : start + size], int(self.labels[row]))


class WebDatasetSource(BlockSource[Stretch]):
    """Samples of tar shards."""

    Config: ClassVar[type[SourceConfig]] = WebDatasetConfig

    def __init__(self, config: WebDatasetConfig) -> None:
        url = require_url(config, "a .tar file, or a folder or s3:// prefix of them")
        self._store, self._infos, self.remarks = files_of_split(url, config.split, "tar")
        self._check = DigestCheck(self._store)
        wanted = config.image_extension, config.label_extension, config.label_key
        self._rules = find_rules(self._store, self._infos, *wanted)
        if config.num_classes and self._rules.label is None:
            raise SourceError(f"{url}: num_classes {config.num_classes}: samples have no label; set label_extension")
        # Without a rule, unless the user wants none, to see that the other samples have no label either.
        read_labels = config.num_classes is None if self._rules.label else config.label_extension is None
        index = index_of(
            self._store, self._infos, self._rules, config.block_bytes, labels=read_labels, url=config.index
        )
        self._headers = [shard.headers for shard in index.shards]
        self._spans = [(number, span) for number, shard in enumerate(index.shards) for span in shard.spans]
        num_classes = config.num_classes or 1 + max(shard.largest_label for shard in index.shards)
        super().__init__(
            url=url,
            schema=config.image_schema(num_classes, ()),
            rows=np.array([span.num_samples for _, span in self._spans], np.int64),
            sizes=np.array([span.stop - span.start for _, span in self._spans], np.int64),
            limit=config.limit,
            max_corrupt=config.max_corrupt,
            cache_bytes=config.cache_bytes,
        )

    def digest(self) -> str:
        """SHA-256 over the names and sizes of all members, the rules, and the number of samples that are used."""
        return digest_of([[info.key for info in self._infos], self._headers, list(self._rules), len(self)])

    def _name(self, index: int) -> str:
        number, row = self._locate(index)
        shard, _ = self._spans[number]
        data, where = self._cache.get(number).data, self._infos[shard].key
        found = samples(members(lambda start, length: data[start : start + length], len(data), where), where)
        return f"{where} sample {next(sample.key for at, sample in enumerate(found) if at == row)}"

    def _fetch_block(self, number: int) -> Stretch:
        shard, span = self._spans[number]
        info, where = self._infos[shard], f"{self._url}: {self._infos[shard].key}"
        self._check(info)
        data = self._store.get(info.key, start=span.start, length=span.stop - span.start)

        def read(start: int, length: int) -> bytes:
            return data[start : start + length]

        places, labels = [], []
        for sample in samples(members(read, len(data), where), where):
            image = self._rules.image_of(sample)
            places.append((image.start, image.size) if image else (-1, 0))
            label = 0
            if self._rules.label is not None:
                part = sample.parts.get(self._rules.label)
                label = self._rules.label_of(sample, read(part.start, part.size) if part else None, where)
                if label >= self.schema.num_classes:
                    raise SourceError(
                        f"{where}: sample {sample.key}: its label is {label}; {labels_must(self.schema.num_classes)}, or "
                        "label_extension: none"
                    )
            labels.append(label)
        if len(data) != span.stop - span.start or len(places) != span.num_samples:
            raise SourceError(f"{where}: has changed since it was opened or its index was made; make the index again")
        return Stretch(data, np.array(places, np.int64), np.array(labels, np.int64))
