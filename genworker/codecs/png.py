"""PNG by imagecodecs (libpng, zlib): gray, gray + alpha, RGB or RGBA, 8 bits.

In: uint8 [H, W, C] with channels in RGB order. Out: a PNG file without metadata, so equal pixels give equal bytes for
one version of libpng and zlib. Encoding and decoding leave Python's lock. It never scales or converts: another size or
another number of channels is an error.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar

import imagecodecs

from genworker.codecs.checks import as_plain, check_pixels
from genworker.errors import DatasetError

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type, PNG specification, table 11.1

# Run lengths instead of matches, and the three cheap row filters. Against libpng's defaults at level 1 (medians of five
# runs): 1.15x as fast and 2% smaller on 28x28x1 clothes, 2.1x and 3% smaller on synthetic smooth 64x64x3 images; on
# 512x512x3 noise 2.7x as fast and 1% larger.
_LEVEL = 1
_STRATEGY = imagecodecs.PNG.STRATEGY.RLE
_FILTER = imagecodecs.PNG.FILTER.FAST


def _library() -> str:
    # zlib is the operating system's, not the wheel's (manylinux wheels may not bring their own), so it has to be asked.
    return f"imagecodecs {imagecodecs.__version__}, {imagecodecs.png_version()}, {imagecodecs.zlib_version()}"


class PngCodec:
    """Follows `base.Codec`; lossless."""

    name: ClassVar[str] = "png"
    extension: ClassVar[str] = "png"
    lossless: ClassVar[bool] = True
    is_image_file: ClassVar[bool] = True
    channels: ClassVar[tuple[int, ...]] = tuple(_COLOUR_TYPES)
    max_side: ClassVar[int] = 2**31 - 1
    default_quality: ClassVar[int | None] = None
    library = _library()

    def __init__(self, schema: ImageSchema) -> None:
        self._schema = schema
        self._shape = schema.pixel_shape
        raw = schema.height * schema.width * schema.channels
        self.max_bytes = raw + raw // 32 + schema.height + 128
        # imagecodecs' own estimate forgets the filter byte of each row, and narrow images of noise do not fit into it.
        self._buffer_bytes = raw + raw // 8 + schema.height + 1024
        self._header = struct.pack(
            ">8sI4sIIBBBBB",
            *(_SIGNATURE, 13, b"IHDR", schema.width, schema.height, 8, _COLOUR_TYPES[schema.channels], 0, 0, 0),
        )

    def encode(self, pixels: Pixels) -> bytes:
        """Return the bytes of a PNG file."""
        check_pixels(pixels, self._shape)
        pixels = as_plain(pixels, self._shape)
        data = imagecodecs.png_encode(pixels, level=_LEVEL, strategy=_STRATEGY, filter=_FILTER, out=self._buffer_bytes)
        return bytes(data)

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, C].

        Raises:
            DatasetError: no PNG, another size or colour type than the schema's, cut short, or a wrong checksum.
        """
        # The header is compared before libpng sees the file, so that no forged size can ask for memory.
        if not data.startswith(self._header):
            raise DatasetError(f"PNG of {len(data)} bytes: {self._what_is(data)}, expected {self._expected()}")
        # libpng stops reading at the last pixel; the end marker is what shows that nothing is missing.
        if not data.endswith(_IEND):
            raise DatasetError(f"PNG of {len(data)} bytes: it is cut short (no end marker); the image is damaged")
        try:
            pixels: Pixels = imagecodecs.png_decode(data)
        except (imagecodecs.PngError, ValueError, RuntimeError) as err:
            raise DatasetError(f"PNG of {len(data)} bytes: cannot be decoded: {err}; the image is damaged") from err
        return pixels.reshape(self._shape)

    def _expected(self) -> str:
        return f"{self._schema.height}x{self._schema.width} pixels with {self._schema.channels} channels of 8 bits"

    @staticmethod
    def _what_is(data: bytes) -> str:
        if len(data) < 33 or not data.startswith(_SIGNATURE):
            return "the bytes are not a PNG file"
        width, height, bits, colour_type = struct.unpack(">IIBB", data[16:26])
        return f"it holds {height}x{width} pixels of {bits} bits and colour type {colour_type}"
