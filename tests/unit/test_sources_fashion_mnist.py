"""Fashion-MNIST: what ships is what Zalando published, and what is missing is answered with how to get it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from genworker.errors import SourceError
from genworker.sources.fashion_mnist import (
    CLASS_NAMES,
    DEBIAN_FOLDER,
    SHIPPED_FOLDER,
    FashionMnistConfig,
    FashionMnistSource,
    find_folder,
    usual_folders,
)

if TYPE_CHECKING:
    from pathlib import Path

needs_debian = pytest.mark.skipif(
    not (DEBIAN_FOLDER / "train-images-idx3-ubyte.gz").is_file(), reason="needs the package dataset-fashion-mnist"
)


def test_the_shipped_images_are_ready_to_use() -> None:
    """`url: shipped` gives 10,000 labelled images of ten named classes, without a download."""
    source = FashionMnistSource(FashionMnistConfig(url="shipped"))
    batch = source.read(np.arange(len(source)))
    assert len(source) == 10_000
    assert source.schema.pixel_shape == (28, 28, 1)
    assert source.schema.class_names == CLASS_NAMES
    assert batch.labels is not None
    assert np.bincount(batch.labels).min() > 900
    assert source.corrupt == []


def test_the_shipped_files_are_those_described() -> None:
    """The checksums in ATTRIBUTION.md are the files', and these stay small."""
    about = (SHIPPED_FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    contents = [path.read_bytes() for path in SHIPPED_FOLDER.glob("*.gz")]
    assert len(contents) == 2
    assert all(hashlib.sha256(content).hexdigest() in about for content in contents)
    assert sum(map(len, contents)) < 5_000_000


@needs_debian
def test_the_shipped_images_equal_the_published_ones() -> None:
    """Every pixel and label equals those of the IDX files, so both ways of reading have the same digest."""
    shipped = FashionMnistSource(FashionMnistConfig(url="shipped"))
    published = FashionMnistSource(FashionMnistConfig(url=str(DEBIAN_FOLDER), limit=10_000))
    ours, theirs = shipped.read(np.arange(10_000)), published.read(np.arange(10_000))
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert ours.labels is not None
    assert theirs.labels is not None
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert shipped.digest() == published.digest()


@needs_debian
def test_debians_test_split_is_found() -> None:
    """Without a URL the installed package is used, and its test split is the 10,000 t10k images."""
    assert len(FashionMnistSource(FashionMnistConfig(split="test"))) == 10_000


def test_the_shipped_images_are_no_test_split() -> None:
    """Only training images ship, so asking for a test split is refused instead of answered with them."""
    with pytest.raises(
        SourceError, match="split 'test' of url 'shipped': only the first 10,000 images of the training"
    ):
        FashionMnistSource(FashionMnistConfig(url="shipped", split="test"))


def test_missing_files_are_answered_with_how_to_get_them(tmp_path: Path) -> None:
    """Where the files are nowhere, the error names the places, the package, the four files and what ships."""
    with pytest.raises(SourceError) as error:
        find_folder([tmp_path / "a", tmp_path], "train")
    for expected in (f"{tmp_path}/a", "apt install dataset-fashion-mnist", "t10k-labels-idx1-ubyte.gz", "'shipped'"):
        assert expected in str(error.value)


def test_the_users_own_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$GENWORKER_DATA/fashion-mnist is looked at before what the system installed, and only if it holds the split."""
    monkeypatch.setenv("GENWORKER_DATA", str(tmp_path))
    assert usual_folders() == [tmp_path / "fashion-mnist", DEBIAN_FOLDER]
    own, system = tmp_path / "fashion-mnist", tmp_path / "system"
    for folder, names in ((own, ["train"]), (system, ["train", "t10k"])):
        folder.mkdir()
        for name in names:
            (folder / f"{name}-images-idx3-ubyte.gz").touch()
            (folder / f"{name}-labels-idx1-ubyte").touch()
    assert find_folder([own, system], "train") == own
    assert find_folder([own, system], "test") == system


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """IDX files of something else are not taken for Fashion-MNIST."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 00000001 00000002 00000002") + b"1234")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 00000001 05"))
    with pytest.raises(SourceError, match=r"images of 2x2, but Fashion-MNIST has 28x28; .* data.name idx"):
        FashionMnistSource(FashionMnistConfig(url=str(tmp_path)))
