"""The contract of an image codec: pixels to bytes and back, one image at a time."""

from __future__ import annotations

from typing import ClassVar, Protocol

from genworker.schema import ImageSchema, Pixels


class Codec(Protocol):
    """Encode and decode single images of one schema.

    Attributes:
        name: what the user writes after ``--codec``.
        extension: file extension without the dot.
        lossless: decode(encode(x)) equals x bit for bit.
        is_image_file: the bytes are a file that image viewers and `datasets.Image` can open.
        library: name and version of the encoder; part of a plan, because it decides the bytes.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    lossless: ClassVar[bool]
    is_image_file: ClassVar[bool]
    library: str

    def __init__(self, schema: ImageSchema) -> None: ...

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of one image, uint8 [H, W, C]; the same pixels always give the same bytes."""
        ...

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C]. Raises DatasetError when the bytes are not an image of this schema."""
        ...
