"""Foreign images come out upright, opaque, square and of one size; broken and hostile ones are refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genworker.errors import CorruptImageError
from genworker.sources.images import MAX_PIXELS, decode_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def stripes(width: int, height: int) -> Image.Image:
    """Red, green and blue side by side, each a third of the width."""
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate((RED, GREEN, BLUE)):
        image.paste(colour, (number * width // 3, 0, (number + 1) * width // 3, height))
    return image


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_keeps_every_pixel(channels: int) -> None:
    """A lossless image that already fits is returned as it was stored."""
    shape = (32, 32) if channels == 1 else (32, 32, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for format_, options in [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]:
        if format_ == "WEBP" and channels == 1:
            continue  # WebP has no grey
        decoded = decode_image(encode(Image.fromarray(pixels), format_, **options), size=32, channels=channels)
        assert np.array_equal(decoded, pixels.reshape(32, 32, channels)), format_


@pytest.mark.parametrize(("width", "height"), [(96, 32), (960, 320), (3000, 1000), (24, 8)])
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_the_centre_square_is_kept(width: int, height: int, format_: str) -> None:
    """Of a wide image only the middle is left, at any scale and also where JPEG decodes at a fraction of its size."""
    data = encode(stripes(width, height), format_, **({"quality": 95, "subsampling": 0} if format_ == "JPEG" else {}))
    pixels = decode_image(data, size=32, channels=3)
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels[:, 4:28].astype(int) - GREEN).max() < 12


def test_shrinking_averages() -> None:
    """A fine checkerboard becomes even grey, not a pattern of its own."""
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode_image(encode(Image.fromarray(board)), size=32, channels=1)
    assert np.abs(pixels.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("side", [40, 100, 250, 1000])
def test_decoding_jpeg_at_a_fraction_loses_nothing_visible(side: int) -> None:
    """A JPEG comes out as the same picture does that was decoded at full size first."""
    rows, columns = np.mgrid[:side, :side] / side
    waves = (127 + 120 * np.sin(40 * rows) * np.cos(40 * columns)).astype(np.uint8)
    jpeg = encode(Image.fromarray(waves), "JPEG", quality=95)
    full = encode(Image.open(io.BytesIO(jpeg)))
    direct, detour = (decode_image(data, size=32, channels=1).astype(int) for data in (jpeg, full))
    assert np.abs(direct - detour).max() <= 6


def test_exif_orientation_is_applied() -> None:
    """A photo that a phone stored lying on its side comes out upright."""
    top_half_red = Image.new("RGB", (32, 32), BLUE)
    top_half_red.paste(RED, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: the viewer turns it clockwise
    data = encode(top_half_red.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(decode_image(data, size=32, channels=3), np.asarray(top_half_red))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str) -> None:
    """What an editor left below transparent pixels is not shown to the network."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    options: dict[str, Any] = {}
    if mode == "P":
        image, options = Image.new("P", (32, 32), 1), {"transparency": 1}
        image.putpalette([0, 0, 0, 7, 7, 7])
        image.paste(0, (0, 0, 16, 32))
    pixels = decode_image(
        encode(image if mode in ("RGBA", "P") else image.convert(mode), **options), size=32, channels=3
    )
    assert (pixels[:, :16] == 0).all()
    assert (pixels[:, 16:] == 255).all()


def test_sixteen_bit_grey_is_scaled() -> None:
    """A 16-bit picture keeps its contrast instead of turning white above 255."""
    ramp = np.repeat(np.arange(32, dtype=np.uint16)[None] * 2048, 32, 0)
    pixels = decode_image(encode(Image.fromarray(ramp)), size=32, channels=1)
    assert np.array_equal(pixels[0, :, 0], np.arange(32) * 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_of_sixteen_bit_grey_becomes_white(channels: int) -> None:
    """The value that a PNG names as transparent is white like other transparent pixels; its neighbours keep their grey."""
    values = np.full((8, 8), 1000, np.uint16)
    data = encode(Image.fromarray(values), transparency=1000)
    assert (decode_image(data, size=8, channels=channels) == 255).all()
    values[:, :4] = 1001  # the same grey once it is scaled
    pixels = decode_image(encode(Image.fromarray(values), transparency=1000), size=8, channels=channels)
    assert (pixels[:, :4] == 3).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_common_mode_is_converted(mode: str, channels: int) -> None:
    """White is white, whatever way an image stores it."""
    image = Image.new("RGB", (40, 40), "white").convert(mode)
    data = encode(image, "JPEG" if mode == "CMYK" else "PNG")
    assert (decode_image(data, size=32, channels=channels) == 255).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 12000, 60000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """A file that would unpack to more than the limit is refused undecoded, below and above Pillow's own limits."""
    assert side * side > MAX_PIXELS
    with pytest.raises(CorruptImageError, match="pixels"):
        decode_image(bomb(side, side), size=32, channels=3)


BROKEN = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "cut png": encode(stripes(300, 300))[:200],
    "cut jpeg": encode(stripes(300, 300), "JPEG")[:-400],
    "cut webp": encode(stripes(300, 300), "WEBP")[:60],
    "lying png": bomb(100, 100),
    "gif, which is not read": encode(stripes(30, 30), "GIF"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_refused_with_the_reason(data: bytes) -> None:
    """Whatever a decoder raises becomes one type with a sentence, the same each time; a half image is never returned."""
    with pytest.raises(CorruptImageError, match="cannot be decoded: ") as first:
        decode_image(data, size=32, channels=3)
    with pytest.raises(CorruptImageError) as second:
        decode_image(data, size=32, channels=3)
    assert str(first.value) == str(second.value)
    assert " at 0x" not in str(first.value)


def test_bytes_that_are_no_image_are_told_by_their_beginning() -> None:
    """The message names what is read and what is there instead, and not where it lies in memory."""
    with pytest.raises(CorruptImageError) as caught:
        decode_image(BROKEN["text"], size=32, channels=3)
    assert str(caught.value) == (
        "cannot be decoded: its 26 bytes are no whole PNG, JPEG, WEBP or BMP image; they begin with b'<html>404 not fo'"
    )
