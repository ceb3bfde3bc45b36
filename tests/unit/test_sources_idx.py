"""IDX files are read whole or refused with the file's name, what was seen and what was expected."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from genworker.errors import SourceError
from genworker.sources import idx
from genworker.sources.idx import IdxConfig, IdxSource
from tests.memory import growth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PIXELS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def images(pixels: Any = PIXELS, magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, *pixels.shape) + bytes(pixels.tobytes())


def labels(values: bytes = bytes([0, 1, 2, 1, 0]), magic: int = 0x801) -> bytes:
    return struct.pack(">2I", magic, len(values)) + values


def fill(folder: Path, *, images_: bytes | None = None, labels_: bytes | None = None) -> Path:
    (folder / IMAGES).write_bytes(images() if images_ is None else images_)
    (folder / LABELS).write_bytes(labels() if labels_ is None else labels_)
    return folder


def source(folder: Path, **more: Any) -> IdxSource:
    return IdxSource(IdxConfig(url=str(folder), **more))


@pytest.mark.parametrize("name", [IMAGES, "train-images.idx3-ubyte", IMAGES + ".gz", "train-images.idx3-ubyte.gz"])
def test_the_usual_names_are_found(name: str, tmp_path: Path) -> None:
    """Images are found under each spelling in use, gzipped or not, and are never transposed."""
    (tmp_path / name).write_bytes(gzip.compress(images()) if name.endswith(".gz") else images())
    (tmp_path / LABELS).write_bytes(labels())
    found = source(tmp_path)
    batch = found.read(np.arange(5))
    assert found.schema.pixel_shape == (4, 3, 1)
    assert np.array_equal(batch.pixels[..., 0], PIXELS)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2, 1, 0]


def test_the_test_split_is_the_t10k_files(tmp_path: Path) -> None:
    """Split test reads the files that begin with t10k and never those of the training split."""
    fill(tmp_path)
    with pytest.raises(
        SourceError, match=r"holds no t10k-images-idx3-ubyte .* it holds train-images-idx3-ubyte, train-"
    ):
        source(tmp_path, split="test")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images(PIXELS[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels(b"\1\0"))
    assert len(source(tmp_path, split="test")) == 2


WRONG: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "cut short": (lambda: {"images_": images()[:-1]}, f"{IMAGES}: holds only 59 bytes .* shape of 5x4x3 = 60"),
    "too long": (lambda: {"labels_": labels() + b"\0"}, f"{LABELS}: holds more bytes .* shape of 5 = 5"),
    "no header": (lambda: {"images_": b"\0\0\x08"}, f"{IMAGES}: is 3 bytes long, shorter than the 16"),
    "empty": (lambda: {"labels_": b""}, f"{LABELS}: is 0 bytes long"),
    "files swapped": (
        lambda: {"images_": labels(bytes(20))},
        f"{IMAGES}: begins with 0x00000801; .* images .* 0x00000803",
    ),
    "another type": (lambda: {"images_": images(magic=0xD03)}, f"{IMAGES}: begins with 0x00000d03"),
    "counts differ": (lambda: {"labels_": labels(b"\0\1")}, f"{IMAGES}: holds 5 images but there are 2 labels"),
    "label too large": (lambda: {"labels_": labels(bytes([0, 0, 26, 0, 11]))}, "label 26 of image 2 .* at least 27"),
    "nothing": (lambda: {"images_": struct.pack(">4I", 0x803, 0, 4, 3)}, f"{IMAGES}: its header tells .* 0x4x3"),
    "absurd": (
        lambda: {"images_": struct.pack(">4I", 0x803, *[2**32 - 1] * 3)},
        f"{IMAGES}: .*; more than 1073741824 bytes",
    ),
    "labels absurd": (lambda: {"labels_": struct.pack(">2I", 0x801, 2**24 + 1)}, f"{LABELS}: .* or 16777216 labels"),
    "gzip cut": (lambda: {"images_": gzip.compress(images())[:-12]}, f"{IMAGES}: is damaged or cut short"),
    "gzip changed": (
        lambda: {"images_": gzip.compress(images())[:-8] + bytes(8)},
        f"{IMAGES}: is damaged or cut short",
    ),
    "gzip garbage": (lambda: {"images_": b"\x1f\x8b\x08\0" + bytes(20)}, f"{IMAGES}: is damaged or cut short"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named(wrong: Callable[[], dict[str, bytes]], message: str, tmp_path: Path) -> None:
    """Every kind of damage names the file, what was seen and what was expected."""
    with pytest.raises(SourceError, match=message):
        source(fill(tmp_path, **wrong()))


@pytest.mark.parametrize("count", [5, 300_000])
def test_a_gzip_file_is_unpacked_no_further_than_its_labels_and_limits_go(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file that unpacks to 100 MB is refused by its header, or where it goes on after what its header tells."""
    header = struct.pack(">4I", 0x803, count, 1, 1000 if count > 5 else 1)
    hostile = gzip.compress(header + bytes(100_000_000), 1)
    fill(tmp_path, images_=hostile)
    with growth() as grown, pytest.raises(SourceError, match=f"{IMAGES}: holds (more bytes after|300000 images but)"):
        source(tmp_path)
    assert grown.mib < 50
    monkeypatch.setattr(idx, "_MAX_BYTES", len(hostile) - 1)
    with pytest.raises(SourceError, match=f"{IMAGES}: has {len(hostile)} bytes"):
        source(tmp_path)


def test_more_classes_can_be_asked_for(tmp_path: Path) -> None:
    """Letters need 26 classes, and saying so is all it takes."""
    fill(tmp_path, labels_=labels(bytes([0, 0, 25, 0, 11])))
    assert source(tmp_path, num_classes=26).schema.num_classes == 26


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    """Images without labels are refused with what the folder holds."""
    (tmp_path / IMAGES).write_bytes(images())
    with pytest.raises(SourceError, match=f"holds no .* it holds {IMAGES}"):
        source(tmp_path)
