"""What every codec promises, run over the table of codecs."""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from genworker import codecs
from genworker.errors import DatasetError, UsageError
from genworker.schema import ImageSchema, Pixels

LOSSLESS = [name for name in codecs.names() if codecs.get(name).lossless]
LOSSY = [name for name in codecs.names() if not codecs.get(name).lossless]
IMAGE_FILES = [name for name in codecs.names() if codecs.get(name).is_image_file]
SCHEMA = ImageSchema(channels=3, height=7, width=5)


def noise(schema: ImageSchema, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, schema.pixel_shape, dtype=np.uint8)


def waves(schema: ImageSchema, seed: int = 0) -> Pixels:
    """A smooth picture: slow waves, other ones in each channel."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((schema.height, schema.width))
    waves = []
    for _ in range(schema.channels):
        down, right, phase = random.uniform(0, [0.1, 0.1, 6]).tolist()
        waves.append(np.sin(down * rows + right * columns + phase))
    return np.rint(127.5 * np.stack(waves, axis=-1) + 127.5).astype(np.uint8)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(
    schema=st.builds(ImageSchema, channels=st.integers(1, 4), height=st.integers(1, 40), width=st.integers(1, 40)),
    seed=st.integers(0, 2**32),
    smooth=st.booleans(),
)
def test_lossless_codec_gives_back_the_same_pixels(name: str, schema: ImageSchema, seed: int, smooth: bool) -> None:
    """Decoding what was encoded gives the same pixels for every channel count that it stores, and odd sizes."""
    assume(schema.channels in codecs.get(name).channels)
    pixels = noise(schema, seed) // (64 if smooth else 1)
    codec = codecs.make(name, schema)
    decoded = codec.decode(codec.encode(pixels))
    assert decoded.dtype == np.uint8
    assert decoded.shape == schema.pixel_shape
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("name", LOSSY)
@settings(max_examples=60, deadline=None)
@given(
    schema=st.builds(ImageSchema, channels=st.integers(1, 4), height=st.integers(1, 40), width=st.integers(1, 40)),
    seed=st.integers(0, 2**32),
)
def test_lossy_codec_gives_back_nearly_the_same_pixels(name: str, schema: ImageSchema, seed: int) -> None:
    """Smooth pictures come back in their size and type, on average less than 2 of 255 levels away.

    In pictures of a few pixels that is 4, and 8 where colours are stored at half resolution. Alpha is kept; WebP does not keep
    colours where it is 0, which nobody sees.
    """
    assume(schema.channels in codecs.get(name).channels)
    pixels = waves(schema, seed)
    codec = codecs.make(name, schema)
    decoded = codec.decode(codec.encode(pixels))
    assert decoded.dtype == np.uint8
    assert decoded.shape == schema.pixel_shape
    errors = np.abs(decoded.astype(int) - pixels)
    if schema.channels == 4:
        assert not errors[..., 3].any()
        errors *= pixels[..., 3:] > 0
    small = min(schema.height, schema.width) < 8
    assert errors.mean() < (8 if name == "webp-lossy" else 4 if small else 2)


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


@pytest.mark.parametrize("name", codecs.names())
def test_image_with_a_wrong_byte_is_never_a_crash(name: str) -> None:
    """Any one changed byte is a DatasetError or leaves an image of the schema's size."""
    codec = codecs.make(name, SCHEMA)
    data = codec.encode(noise(SCHEMA))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        with contextlib.suppress(DatasetError):
            assert codec.decode(bytes(damaged)).shape == SCHEMA.pixel_shape


def test_png_with_a_wrong_byte_is_refused() -> None:
    """PNG has checksums, alone among the image files: any one changed byte is refused or leaves the pixels as they were."""
    codec = codecs.make("png", SCHEMA)
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
def test_image_of_another_size_is_refused(name: str) -> None:
    """An image of another height or width is a DatasetError when decoding, a ValueError when encoding."""
    codec = codecs.make(name, SCHEMA)
    for change in ({"height": 8}, {"width": min(70_000, codec.max_side)}):
        other = SCHEMA.model_copy(update=change)
        with pytest.raises(DatasetError):
            codec.decode(codecs.make(name, other).encode(noise(other)))
        with pytest.raises(ValueError, match="made for uint8"):
            codec.encode(noise(other))


@pytest.mark.parametrize("name", codecs.names())
def test_image_of_another_channel_count_is_refused_or_the_same_picture(name: str) -> None:
    """Gray read as colour is refused, or three equal channels where files do not tell gray; colour is never read as gray."""
    gray, colour = SCHEMA.model_copy(update={"channels": 1}), SCHEMA
    with contextlib.suppress(DatasetError):
        read = codecs.make(name, colour).decode(codecs.make(name, gray).encode(noise(gray)))
        seen = codecs.make(name, gray).decode(codecs.make(name, gray).encode(noise(gray)))
        rounding = 4 if name == "webp-lossy" else 0
        assert np.abs(read.astype(int) - np.broadcast_to(seen, colour.pixel_shape)).max() <= rounding
    with pytest.raises(DatasetError):
        codecs.make(name, gray).decode(codecs.make(name, colour).encode(noise(colour)))
    with pytest.raises(ValueError, match="made for uint8"):
        codecs.make(name, colour).encode(noise(gray))


@pytest.mark.parametrize("name", codecs.names())
def test_schema_that_a_codec_cannot_store_is_refused(name: str) -> None:
    """Too many channels or too long sides are a UsageError that names the codecs that can, before any image is made."""
    for channels in {1, 2, 3, 4} - set(codecs.get(name).channels):
        with pytest.raises(UsageError, match=rf"'{name}': images of 7x5x{channels}, .*; it stores .*: png, .*raw"):
            codecs.make(name, SCHEMA.model_copy(update={"channels": channels}))
    for channels in codecs.get(name).channels:
        codecs.make(name, SCHEMA.model_copy(update={"channels": channels}))
    if codecs.get(name).max_side < 70_000:
        with pytest.raises(UsageError, match=f"sides up to {codecs.get(name).max_side}"):
            codecs.make(name, SCHEMA.model_copy(update={"width": codecs.get(name).max_side + 1}))


@pytest.mark.parametrize("name", codecs.names())
def test_no_image_is_larger_than_the_codec_says(name: str) -> None:
    """max_bytes holds for noise and for black and white noise, the hardest of pixels, at any size and shape."""
    for channels in codecs.get(name).channels:
        for height, width in ((1, 1), (1, 700), (700, 1), (28, 28), (97, 103), (256, 256)):
            schema = ImageSchema(channels=channels, height=height, width=width)
            codec = codecs.make(name, schema)
            pixels = noise(schema)
            for hard in (pixels, pixels // 128 * 255, np.broadcast_to(pixels[..., :1] // 128 * 255, pixels.shape)):
                assert len(codec.encode(hard)) <= codec.max_bytes


@pytest.mark.parametrize("name", IMAGE_FILES)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_image_files_open_elsewhere_with_the_right_colours(name: str, channels: int, mode: str) -> None:
    """Pillow opens the file and sees the same channels in the same order."""
    if channels not in codecs.get(name).channels:
        return
    schema = ImageSchema(channels=channels, height=32, width=24)
    pixels = waves(schema)
    codec = codecs.make(name, schema)
    with Image.open(io.BytesIO(codec.encode(pixels))) as image:
        # WebP has no gray: what it holds is converted, without loss since the channels are equal.
        seen = np.asarray(image.convert(mode)).reshape(schema.pixel_shape)
    assert np.abs(seen.astype(int) - pixels).mean() <= (0 if codec.lossless else 3)


def test_webp_keeps_the_colours_of_transparent_pixels() -> None:
    """Pixels with alpha 0 come back with their colours, and an alpha that is opaque everywhere comes back."""
    schema = SCHEMA.model_copy(update={"channels": 4})
    codec = codecs.make("webp", schema)
    for alpha in (0, 255):
        pixels = noise(schema)
        pixels[..., 3] = alpha
        np.testing.assert_array_equal(codec.decode(codec.encode(pixels)), pixels)


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


@pytest.mark.parametrize("name", LOSSY)
def test_quality_decides_size_and_error(name: str) -> None:
    """Lossy codecs take a quality after a colon: a higher one costs bytes and saves error, and max_bytes holds for all."""
    schema = ImageSchema(channels=3, height=64, width=48)
    pixels, hard = waves(schema), noise(schema) // 128 * 255
    sizes, errors = [], []
    for quality in (1, 50, 95, 100):
        codec = codecs.make(f"{name}:{quality}", schema)
        sizes.append(len(codec.encode(pixels)))
        errors.append(float(np.abs(codec.decode(codec.encode(pixels)).astype(int) - pixels).mean()))
        assert len(codec.encode(hard)) <= codec.max_bytes
        assert f"quality {quality}" in codec.library
    # Blocks of 16 pixels are stored whole.
    for height, width in ((1, 1), (1, 40), (40, 1), (17, 33)):
        thin = ImageSchema(channels=3, height=height, width=width)
        for quality in (1, 90, 100):
            codec = codecs.make(f"{name}:{quality}", thin)
            assert len(codec.encode(noise(thin) // 128 * 255)) <= codec.max_bytes
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    default = f"{name}:{codecs.get(name).default_quality}"
    assert codecs.make(name, schema).encode(pixels) == codecs.make(default, schema).encode(pixels)


def test_a_codec_has_one_spelling() -> None:
    """What goes into a plan is the name, and the quality in decimal where there is one."""
    texts = ["png", "raw", "webp", "jpeg", "jpeg:90", "jpeg:090", "jpeg:7", "webp-lossy"]
    expected = ["png", "raw", "webp", "jpeg:90", "jpeg:90", "jpeg:90", "jpeg:7", "webp-lossy:90"]
    assert [codecs.canonical(text) for text in texts] == expected


@pytest.mark.parametrize(
    "text", ["jpeg:", "jpeg:0", "jpeg:101", "jpeg:9.5", "jpeg:-1", "jpeg:\u0669", "jpeg:90:1", "jpeg: 9"]
)
def test_impossible_qualities_are_refused(text: str) -> None:
    """A quality outside 1 to 100, or no number, is a UsageError that shows how to write one."""
    with pytest.raises(UsageError, match=r"whole number from 1 to 100, as in jpeg:90"):
        codecs.make(text, SCHEMA)


@pytest.mark.parametrize("name", LOSSLESS)
def test_codecs_without_a_quality_take_none(name: str) -> None:
    """A quality for a lossless codec is a UsageError."""
    with pytest.raises(UsageError, match=f"{name} has no quality; write {name}"):
        codecs.canonical(f"{name}:90")


def test_unknown_codec_is_answered_with_the_known_names() -> None:
    """A codec that nobody registered is a UsageError with all names and the nearest one."""
    with pytest.raises(UsageError, match="known: png, webp, webp-lossy, jpeg, raw; did you mean 'png'"):
        codecs.get("pgn")
