"""The contract of an image codec: pixels to bytes and back, one image at a time."""

from __future__ import annotations

from typing import ClassVar, Protocol

from genworker.schema import ImageSchema, Pixels


class Codec(Protocol):
    """Encode and decode single images of one schema.

    Attributes:
        name: what the user writes after ``--codec``, before the quality where there is one.
        extension: file extension without the dot.
        lossless: decode(encode(x)) equals x bit for bit.
        is_image_file: the bytes are a file that image viewers and `datasets.Image` can open.
        channels: the channel counts that it can store; `codecs.make` refuses others.
        max_side: the largest height and width that it can store; `codecs.make` refuses larger images.
        default_quality: of a codec with a quality, 1 (smallest files) to 100 (best); its constructor takes the quality after
            the schema. None for all others.
        library: name and version of the encoder, and its settings where there is a choice; part of a plan, because it
            decides the bytes.
        max_bytes: no image of the schema takes more bytes, whatever its pixels are.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    lossless: ClassVar[bool]
    is_image_file: ClassVar[bool]
    channels: ClassVar[tuple[int, ...]]
    max_side: ClassVar[int]
    default_quality: ClassVar[int | None]
    library: str
    max_bytes: int

    def __init__(self, schema: ImageSchema, quality: int = 0) -> None: ...

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of one image, uint8 [H, W, C]; the same pixels always give the same bytes."""
        ...

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C], the caller's own. Raises DatasetError when the bytes are not an image of this schema."""
        ...
