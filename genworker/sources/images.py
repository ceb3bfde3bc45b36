"""Foreign images, decoded and brought to one size, with guards against hostile and broken files.

In: PNG, JPEG, WebP or BMP bytes. Out: uint8 pixels [size, size, channels]: turned upright by EXIF, laid over white
where transparent, converted to grey or RGB, cut to the centre square, resized with Lanczos (box-averaged first when
shrinking by more than six times). An image that already has the size keeps every pixel.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genworker.errors import CorruptImageError

if TYPE_CHECKING:
    from genworker.schema import Pixels

# Checked in the header, before anything is decoded: 8192x8192 in RGB is 200 MB, in each of a few threads.
MAX_PIXELS = 2**26
MAX_ENCODED_BYTES = 2**28
# Only what training data comes in; Pillow's rarer decoders are code that hostile bytes need not reach.
_PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SHOWN_BYTES = 16  # in a message: enough for the signature of any format, or the beginning of an error page


def decode_image(data: bytes, *, size: int, channels: int) -> Pixels:
    """Decode one image to pixels [size, size, channels]; raises CorruptImageError with the reason alone."""
    if len(data) > MAX_ENCODED_BYTES:
        raise CorruptImageError(f"is {len(data)} bytes long; the limit is {MAX_ENCODED_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            _refuse_bombs(image)
            mode = "L" if channels == 1 else "RGB"
            # Lets JPEG decode at a fraction of its size, never below three times the wanted one.
            image.draft(mode, (3 * size, 3 * size))
            pixels = np.asarray(_fit(_convert(ImageOps.exif_transpose(image), mode), size))
    except (CorruptImageError, MemoryError):
        raise
    except UnidentifiedImageError as err:  # its text holds an address in memory, which is another one every time
        formats = f"{', '.join(_PILLOW_FORMATS[:-1])} or {_PILLOW_FORMATS[-1]}"
        raise CorruptImageError(
            f"cannot be decoded: its {len(data)} bytes are no whole {formats} image; they begin with {data[:_SHOWN_BYTES]!r}"
        ) from err
    except Exception as err:  # decoders answer broken bytes with many types, Pillow's bomb guard with two more
        raise CorruptImageError(f"cannot be decoded: {type(err).__name__}: {err}") from err
    return pixels.reshape(size, size, channels)


def _refuse_bombs(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise CorruptImageError(
            f"has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS}, because a small file can unpack to "
            "more than the memory"
        )


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would cut values off at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        grey = (values >> 8).clip(0, 255).astype(np.uint8)
        if (transparent := image.info.get("transparency")) is not None:
            grey[values == transparent] = 255  # white, and found before scaling, which makes one of 256 values
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary; white is what most viewers show.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
