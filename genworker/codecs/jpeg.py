"""JPEG by imagecodecs (libjpeg-turbo): gray or RGB, any quality, every colour at full resolution.

In: uint8 [H, W, C] with channels in RGB order. Out: a JFIF file whose pixels are near the ones given, not equal to them.
The file carries no checksum, so damage inside shows as other pixels; the format around it has to find it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import imagecodecs
import numpy as np

from genworker.codecs.checks import as_plain, check_pixels, values_in_blocks
from genworker.errors import DatasetError

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, Pixels

_START, _END = b"\xff\xd8", b"\xff\xd9"

# Colours at half resolution are seen at once on small images. Optimised tables would save a quarter on 28x28 images and
# take twice as long; who wants small files there takes webp.
_SUBSAMPLING = "444"


class JpegCodec:
    """Follows `base.Codec`; lossy."""

    name: ClassVar[str] = "jpeg"
    extension: ClassVar[str] = "jpg"
    lossless: ClassVar[bool] = False
    is_image_file: ClassVar[bool] = True
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    max_side: ClassVar[int] = 65_500
    default_quality: ClassVar[int | None] = 90  # what most photo sets use

    def __init__(self, schema: ImageSchema, quality: int) -> None:
        self._quality = quality
        self.library = f"imagecodecs {imagecodecs.__version__}, {imagecodecs.jpeg8_version()}, quality {quality}, 4:4:4"
        self._schema = schema
        self._shape = schema.pixel_shape
        # libjpeg knows no channel axis of length one.
        self._stored_shape = self._shape if schema.channels > 1 else self._shape[:2]
        # Black and white noise, which no image outdoes, takes 0.96 bytes a value of whole 8x8 blocks at quality 90, and
        # 1.88 at quality 100.
        in_blocks = values_in_blocks(schema, schema.channels, 8)
        self.max_bytes = (in_blocks * 5 // 4 if quality <= 90 else in_blocks * 5 // 2) + 2048

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of a JPEG file."""
        check_pixels(pixels, self._shape)
        plain = as_plain(pixels, self._stored_shape)
        return bytes(imagecodecs.jpeg8_encode(plain, level=self._quality, subsampling=_SUBSAMPLING))

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C]; raises DatasetError for no JPEG, another size or colour model, or a lost end."""
        # libjpeg fills what is missing with gray; the end marker is what shows that nothing is.
        if not (data.startswith(_START) and data.endswith(_END)):
            raise DatasetError(f"JPEG of {len(data)} bytes: it is no JPEG file, or its end is missing")
        pixels: Pixels = np.empty(self._stored_shape, np.uint8)
        try:
            # The shape of ``out`` is compared with the header first, so that no forged size can ask for memory.
            imagecodecs.jpeg8_decode(data, out=pixels)
        except (imagecodecs.Jpeg8Error, ValueError, RuntimeError) as err:
            raise DatasetError(
                f"JPEG of {len(data)} bytes: {err}; expected {self._schema.describe()}, so the image is damaged or "
                "belongs to another dataset"
            ) from err
        return pixels.reshape(self._shape)
