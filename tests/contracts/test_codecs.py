"""What every codec promises, run over the table of codecs."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genworker import codecs
from genworker.errors import DatasetError, UsageError
from genworker.schema import ImageSchema, Pixels

LOSSLESS = [name for name in codecs.names() if codecs.get(name).lossless]
SCHEMA = ImageSchema(channels=3, height=7, width=5)


def noise(schema: ImageSchema, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, schema.pixel_shape, dtype=np.uint8)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(
    schema=st.builds(ImageSchema, channels=st.integers(1, 4), height=st.integers(1, 40), width=st.integers(1, 40)),
    seed=st.integers(0, 2**32),
    smooth=st.booleans(),
)
def test_lossless_codec_gives_back_the_same_pixels(name: str, schema: ImageSchema, seed: int, smooth: bool) -> None:
    """Decoding what was encoded gives the same pixels for every channel count and odd sizes."""
    pixels = noise(schema, seed) // (64 if smooth else 1)
    codec = codecs.make(name, schema)
    decoded = codec.decode(codec.encode(pixels))
    assert decoded.dtype == np.uint8
    assert decoded.shape == schema.pixel_shape
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize(("height", "width"), [(2000, 1), (1, 2000), (301, 299)])
def test_noise_fits_whatever_the_shape(name: str, height: int, width: int) -> None:
    """Pixels that do not compress are encoded at any aspect ratio."""
    schema = ImageSchema(channels=1, height=height, width=width)
    codec = codecs.make(name, schema)
    np.testing.assert_array_equal(codec.decode(codec.encode(noise(schema))), noise(schema))


@pytest.mark.parametrize("name", codecs.names())
def test_decoded_pixels_belong_to_the_caller(name: str) -> None:
    """Decoded pixels can be written to without changing the bytes that they came from."""
    codec = codecs.make(name, SCHEMA)
    data = codec.encode(noise(SCHEMA))
    before = bytes(bytearray(data))
    codec.decode(data)[:] = 0
    assert data == before


@pytest.mark.parametrize("name", codecs.names())
def test_equal_pixels_give_equal_bytes(name: str) -> None:
    """The bytes depend on the pixels alone: not on the instance, the thread, or the memory layout of the array."""
    pixels = noise(SCHEMA)
    strided = np.zeros((7, 10, 3), np.uint8)[:, ::2]
    strided[:] = pixels
    expected = codecs.make(name, SCHEMA).encode(pixels)
    codec = codecs.make(name, SCHEMA)
    assert codec.encode(strided) == expected
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(codec.encode, [pixels.copy() for _ in range(64)])) == {expected}


@pytest.mark.parametrize("name", codecs.names())
def test_bytes_cut_anywhere_are_refused(name: str) -> None:
    """An image that lost its end, at any position, is a DatasetError."""
    codec = codecs.make(name, SCHEMA)
    data = codec.encode(noise(SCHEMA))
    for length in range(len(data)):
        with pytest.raises(DatasetError):
            codec.decode(data[:length])


@pytest.mark.parametrize("name", [name for name in codecs.names() if codecs.get(name).is_image_file])
def test_image_file_with_a_wrong_byte_is_refused(name: str) -> None:
    """A file format has checksums: any one changed byte is a DatasetError or leaves the pixels as they were."""
    codec = codecs.make(name, SCHEMA)
    pixels = noise(SCHEMA)
    data = codec.encode(pixels)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        try:
            decoded = codec.decode(bytes(damaged))
        except DatasetError:
            continue
        np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("name", codecs.names())
@pytest.mark.parametrize(
    "other",
    [
        SCHEMA.model_copy(update={"height": 8}),
        SCHEMA.model_copy(update={"width": 70_000}),
        SCHEMA.model_copy(update={"channels": 1}),
    ],
)
def test_image_of_another_schema_is_refused(name: str, other: ImageSchema) -> None:
    """An image of another size or channel count is a DatasetError when decoding, a ValueError when encoding."""
    codec = codecs.make(name, SCHEMA)
    with pytest.raises(DatasetError):
        codec.decode(codecs.make(name, other).encode(noise(other)))
    with pytest.raises(ValueError, match="made for uint8"):
        codec.encode(noise(other))


@pytest.mark.parametrize("name", [name for name in codecs.names() if codecs.get(name).is_image_file])
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_image_files_open_elsewhere_with_the_right_colours(name: str, channels: int, mode: str) -> None:
    """Pillow opens the file and sees the same channels in the same order."""
    schema = SCHEMA.model_copy(update={"channels": channels})
    pixels = noise(schema)
    codec = codecs.make(name, schema)
    with Image.open(io.BytesIO(codec.encode(pixels))) as image:
        assert image.mode == mode
        if codec.lossless:
            np.testing.assert_array_equal(np.asarray(image).reshape(schema.pixel_shape), pixels)


@pytest.mark.parametrize("name", codecs.names())
def test_codec_says_who_it_is(name: str) -> None:
    """A codec carries the name it is registered under, an extension without dot, and its library with a version."""
    codec = codecs.make(name, SCHEMA)
    assert codec.name == name
    assert codec.extension.isalnum()
    assert any(char.isdigit() for char in codec.library)


def test_png_names_the_zlib_that_decides_its_bytes() -> None:
    """The library text of PNG says the versions of libpng and of zlib, which is the operating system's."""
    assert "libpng 1." in codecs.make("png", SCHEMA).library
    assert "zlib 1." in codecs.make("png", SCHEMA).library


def test_unknown_codec_is_answered_with_the_known_names() -> None:
    """A codec that nobody registered is a UsageError with all names and the nearest one."""
    with pytest.raises(UsageError, match="known: png, raw; did you mean 'png'"):
        codecs.get("pgn")
