"""WebP by imagecodecs (libwebp), without loss and with: gray, RGB or RGBA.

In: uint8 [H, W, C] with channels in RGB order. Out: a WebP file. Without loss it is smaller than PNG and slower to write;
with loss smaller than JPEG, with colours at half resolution. WebP knows no gray: gray images are stored as RGB with three
equal channels, at next to no cost, and read back as gray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import imagecodecs
import numpy as np

from genworker.codecs.checks import as_plain, check_pixels, values_in_blocks
from genworker.errors import DatasetError

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, Pixels

# On 28x28x1 clothes the smallest files of all settings and twice as fast as libwebp's default (method 4); on smooth
# 64x64x3 images 1% larger than the default and four times as fast. Method 0 is faster still and a third larger.
_METHOD = 1
_EFFORT = 0

# With loss, libwebp's default: lower methods are hardly faster on small images and up to 25% larger.
_LOSSY_METHOD = 4
# Equal channels come back unequal by the rounding of YUV, and by no more.
_GRAY_ROUNDING = 4


class _Webp:
    extension: ClassVar[str] = "webp"
    is_image_file: ClassVar[bool] = True
    channels: ClassVar[tuple[int, ...]] = (1, 3, 4)
    max_side: ClassVar[int] = 16_382

    # How far the channels of a gray image may be from each other after decoding.
    _gray_rounding: ClassVar[int] = 0

    def __init__(self, schema: ImageSchema) -> None:
        self._schema = schema
        self._shape = schema.pixel_shape
        self._stored_shape = (schema.height, schema.width, 4 if schema.channels == 4 else 3)
        raw = schema.height * schema.width * self._stored_shape[2]
        self.max_bytes = raw + raw // 8 + 1024

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C]; raises DatasetError for no WebP, another size, colours in a gray image, or a lost end."""
        whole = data[:4] == b"RIFF" and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 == len(data)
        if not whole:
            raise DatasetError(f"WebP of {len(data)} bytes: it is no WebP file, or of another length than it says")
        pixels: Pixels = np.empty(self._stored_shape, np.uint8)
        try:
            # The shape of ``out`` is compared with the header first. libwebp drops an alpha channel that is opaque
            # everywhere, so the file alone does not say whether there is one.
            imagecodecs.webp_decode(data, hasalpha=True if self._stored_shape[2] == 4 else None, out=pixels)
        except (imagecodecs.WebpError, ValueError, RuntimeError) as err:
            raise DatasetError(
                f"WebP of {len(data)} bytes: {err}; expected {self._schema.describe()}, so the image is damaged or "
                "belongs to another dataset"
            ) from err
        if self._schema.channels > 1:
            return pixels
        if int(np.ptp(pixels, axis=-1).max()) > self._gray_rounding:
            raise DatasetError(f"WebP of {len(data)} bytes: it has colours, expected {self._schema.describe()}")
        return pixels[..., 1:2].copy()

    def _stored(self, pixels: Pixels) -> Pixels:
        check_pixels(pixels, self._shape)
        return as_plain(np.broadcast_to(pixels, self._stored_shape), self._stored_shape)


class WebpCodec(_Webp):
    """Follows `base.Codec`; lossless, transparent pixels included."""

    name: ClassVar[str] = "webp"
    lossless: ClassVar[bool] = True
    default_quality: ClassVar[int | None] = None
    library = f"imagecodecs {imagecodecs.__version__}, {imagecodecs.webp_version()}, method {_METHOD}, effort {_EFFORT}"

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of a WebP file."""
        return bytes(imagecodecs.webp_encode(self._stored(pixels), level=_EFFORT, lossless=True, method=_METHOD))


class WebpLossyCodec(_Webp):
    """Follows `base.Codec`; lossy, but for alpha. Colours are not kept where alpha is 0."""

    name: ClassVar[str] = "webp-lossy"
    lossless: ClassVar[bool] = False
    default_quality: ClassVar[int | None] = 90
    _gray_rounding = _GRAY_ROUNDING

    def __init__(self, schema: ImageSchema, quality: int) -> None:
        super().__init__(schema)
        # Colours and brightness are stored in whole blocks, of images of one row too.
        in_blocks = values_in_blocks(schema, self._stored_shape[2], 16)
        self.max_bytes = in_blocks + in_blocks // 8 + 1024
        self._quality = quality
        self.library = (
            f"imagecodecs {imagecodecs.__version__}, {imagecodecs.webp_version()}, method {_LOSSY_METHOD}, "
            f"quality {quality}"
        )

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of a WebP file."""
        stored = self._stored(pixels)
        return bytes(imagecodecs.webp_encode(stored, level=self._quality, lossless=False, method=_LOSSY_METHOD))
