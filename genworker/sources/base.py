"""The contract of a data source: a fixed number of labelled images with random access.

In: a URL and the wanted image size. Out: uint8 pixels and labels by index. A source never shuffles, splits or augments
(the loader does), and never hides an image that it could not decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError, field_validator

from genworker.config import Spec, first_problem
from genworker.errors import SourceError
from genworker.schema import ImageSchema, Int64Array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.schema import SampleBatch

Split = Literal["train", "test"]

UNLABELLED = "none"  # in place of the name of a label's column or member: train without labels


class SourceConfig(Spec):
    """What every source lets the user say; each source adds its own ``name``."""

    special_urls: ClassVar[frozenset[str]] = frozenset()  # words that are no paths
    no_effect: ClassVar[frozenset[str]] = frozenset()  # keys that decide no image and no order

    name: str
    url: str | None = Field(None, description="folder, file or s3:// prefix; some sources have a default")
    split: Split = Field("train", description="which part of the data")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use only the first so many images")
    max_corrupt: Annotated[int, Field(ge=0)] = Field(10, description="undecodable images to tolerate before stopping")

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str | None) -> str | None:
        # Relative to where the spec is read: workers open the data in working directories of their own.
        if not url or "://" in url or url in cls.special_urls:
            return url
        return str(Path(url).expanduser().absolute())


class ResizedConfig(SourceConfig):
    """What sources say whose images come in any size: the centre square of each is cut out and resized."""

    image_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="height and width of what is read, pixels")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for RGB; images are converted")

    def image_schema(self, num_classes: int, class_names: tuple[str, ...]) -> ImageSchema:
        """The schema of what is read, for data with these classes; raises SourceError for more than there can be."""
        try:
            return ImageSchema(
                channels=self.channels,
                height=self.image_size,
                width=self.image_size,
                num_classes=num_classes,
                class_names=class_names,
            )
        except ValidationError as err:
            raise SourceError(
                f"{self.url}: its labels make num_classes {num_classes} with {len(class_names)} names: {first_problem(err)}; "
                "labels are class numbers from 0 on"
            ) from err


@dataclass(frozen=True)
class Blocks:
    """How a source's images lie in storage, where some are cheap to read together: row groups, stretches of a tar file.

    Where each image is a block of its own, none is nearer than another, and it still pays to fetch ahead.

    Attributes:
        ends: int64 [n], rising; block b holds the images from ends[b - 1] (0 for the first) up to ends[b].
        window: how many blocks the source can keep in memory and still have room to fetch as many again.
    """

    ends: Int64Array
    window: int


class Source(Protocol):
    """Random access to ``len(source)`` images of one schema.

    Attributes:
        Config: the pydantic model of what the user may say about this source.
        schema: shape and classes of every image that `read` returns; the same for all splits.
        corrupt: names of the images that could not be decoded so far, each once.
        blocks: which images are cheap to read together, or None where no image is nearer than another.
        remarks: what whoever trains on the data should know of it, each a line, such as files that are not read. Whoever
            starts a run tells them; each of its workers knows the same.
    """

    Config: ClassVar[type[SourceConfig]]
    schema: ImageSchema
    corrupt: list[str]
    blocks: Blocks | None
    remarks: Sequence[str]

    def __init__(self, config: Any) -> None:
        """Open the data that ``config`` (of this class's ``Config``) describes; raises SourceError."""

    def __len__(self) -> int: ...

    def read(self, indices: Int64Array) -> SampleBatch:
        """Return the images at ``indices`` (int64 [N], each in [0, len), repeats allowed) in that order; from any thread.

        An image that cannot be decoded is replaced by the next good one (index + 1, ..., around the end), named in
        ``corrupt`` and counted; ``sample_index`` tells which image really stands at each position. Raises SourceError
        once more than ``max_corrupt`` images are corrupt, IndexError for an index outside, and StoreError for a store
        that did not answer, after which the same call may succeed.
        """
        ...

    def prefetch(self, indices: Int64Array) -> None:
        """Say which images will be read soon; returns at once, and a failure shows only when they are read."""
        ...

    def digest(self) -> str:
        """A SHA-256 over what identifies the data (names and sizes, or content): equal data gives equal digests."""
        ...


def check_indices(indices: Int64Array, length: int) -> None:
    """Raise IndexError unless every index lies in [0, length): a negative one must not wrap around silently."""
    wrong = np.flatnonzero((indices < 0) | (indices >= length))
    if wrong.size:
        raise IndexError(f"index {indices[wrong[0]]}: the source has {length} images")


def some_of(names: Sequence[str], most: int) -> str:
    """The first few names, for messages."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def labels_must(num_classes: int) -> str:
    """What is asked of labels, for messages."""
    if num_classes < 1:
        return "labels are class numbers from 0: correct them"
    return f"labels must lie in [0, num_classes {num_classes}): correct them, set num_classes"


def require_url(config: SourceConfig, what: str) -> str:
    """The URL of ``config``; raises SourceError where none is given. ``what`` says what the URL should name."""
    if not config.url:
        raise SourceError(f"source {config.name}: url is missing; set it to {what}")
    return config.url
