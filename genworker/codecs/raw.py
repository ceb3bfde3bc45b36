"""Raw pixels: the C-order bytes of [H, W, C], nothing around them.

The bytes are no image file; whoever reads them must know the shape, which the formats store beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from genworker.codecs.checks import check_pixels
from genworker.errors import DatasetError

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, Pixels


class RawCodec:
    """Follows `base.Codec`; encoding is a copy."""

    name: ClassVar[str] = "raw"
    extension: ClassVar[str] = "bin"
    lossless: ClassVar[bool] = True
    is_image_file: ClassVar[bool] = False
    channels: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    max_side: ClassVar[int] = 2**31 - 1
    default_quality: ClassVar[int | None] = None
    library = "raw 1"

    def __init__(self, schema: ImageSchema) -> None:
        self._shape = schema.pixel_shape
        self.max_bytes = schema.height * schema.width * schema.channels

    def encode(self, pixels: Pixels) -> bytes:
        """Return height * width * channels bytes."""
        check_pixels(pixels, self._shape)
        return pixels.tobytes()

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C], a copy; raises DatasetError when the number of bytes is another."""
        if len(data) != self.max_bytes:
            height, width, channels = self._shape
            raise DatasetError(
                f"raw image of {len(data)} bytes: {height}x{width}x{channels} pixels take {self.max_bytes}; "
                "the image is damaged or belongs to another dataset"
            )
        return np.frombuffer(data, np.uint8).reshape(self._shape).copy()
