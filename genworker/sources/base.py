"""The contract of a data source: a fixed number of labelled images with random access.

In: a URL and the wanted image size. Out: uint8 pixels and labels by index. A source never shuffles, splits or augments
(the loader does), and never hides an image that it could not decode.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from genworker.config import Spec
from genworker.schema import ImageSchema, Int64Array, SampleBatch


class SourceConfig(Spec):
    """What every source lets the user say; each source adds its own ``name``."""

    name: str
    url: str | None = Field(None, description="folder, file or s3:// prefix; some sources have a default")
    split: Literal["train", "test"] = Field("train", description="which part of the data")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use only the first so many images")
    max_corrupt: Annotated[int, Field(ge=0)] = Field(10, description="undecodable images to tolerate before stopping")


class Source(Protocol):
    """Random access to ``len(source)`` images of one schema.

    Attributes:
        Config: the pydantic model of what the user may say about this source.
        schema: shape and classes of every image that `read` returns.
        corrupt: names of the images that could not be decoded so far, each once.
    """

    Config: ClassVar[type[SourceConfig]]
    schema: ImageSchema
    corrupt: list[str]

    def __len__(self) -> int: ...

    def read(self, indices: Int64Array) -> SampleBatch:
        """Return the images at ``indices`` (int64 [N], each in [0, len)) in that order.

        An image that cannot be decoded is replaced by the next good one (index + 1, ...), named in ``corrupt`` and
        counted. Raises SourceError once more than ``max_corrupt`` images are corrupt.
        """
        ...

    def digest(self) -> str:
        """A SHA-256 over what identifies the data (names and sizes, or content): equal data gives equal digests."""
        ...
