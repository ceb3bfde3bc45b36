"""Splits are told by names, of files and of folders alike, and no image of a test set is trained on without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from genworker.errors import SourceError
from genworker.sources.folder import FolderConfig, FolderSource
from genworker.sources.shard_files import files_of_split
from genworker.sources.splits import split_of

if TYPE_CHECKING:
    from pathlib import Path


def fill(folder: Path, *keys: str) -> Path:
    """Images whose grey is their place in the list, from 0."""
    for value, key in enumerate(keys):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(folder / key)
    return folder


def source(folder: Path, **more: Any) -> FolderSource:
    return FolderSource(FolderConfig(url=str(folder), image_size=8, channels=1, **more))


def values(source_: FolderSource) -> list[int]:
    return sorted(int(v) for v in source_.read(np.arange(len(source_))).pixels[:, 4, 4, 0])


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00010", "train"),
        ("data/Test/0", "test"),
        ("my_train", "train"),
        ("training/000", "train"),
        ("testing", "test"),
        ("train/dev-0", "validation"),
        *((word, "validation") for word in ("val", "valid", "validation", "dev", "eval", "evaluation", "EVAL")),
        ("split=train/0", "train"),
        ("part=1/split=test", "test"),
        ("split=Val/0", "validation"),
        ("split=trains/0", None),
        ("latest", None),
        ("trains", None),
        ("developer", None),
        ("", None),
    ],
)
def test_a_path_tells_its_split_by_its_last_word(path: str, split: str | None) -> None:
    """Words count in any case and between separators, not inside of other words."""
    assert split_of(path) == split


def test_shards_are_told_apart_under_the_same_names(tmp_path: Path) -> None:
    """What is a split's name for a folder is one for a file, so that a set for evaluation is not trained on."""
    for name in ("training-0.tar", "Eval-0.tar", "testing/0.tar", "dev-0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for split, key in (("train", "training-0.tar"), ("test", "testing/0.tar")):
        files = files_of_split(str(tmp_path), split, "tar")  # type: ignore[arg-type]
        assert ([info.key for info in files.infos], files.remarks) == ([key], ())
    with pytest.raises(SourceError, match="has no split 'train': its files are of validation; set split"):
        files_of_split(f"{tmp_path}/Eval-0.tar", "train", "tar")


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test", "dev"),
        ("Train", "Test", "VAL"),
        ("training", "testing", "evaluation"),
        ("train_images", "test_images", "eval"),
        ("train", "test", "raw"),
        ("split=train", "split=test", "split=dev"),
        ("split=train", "split=test", "raw"),
        ("TRAIN", "test", "raw/2024"),
    ],
)
@pytest.mark.parametrize("classes", [("a", "b"), ()])
def test_a_split_is_read_alone(folders: tuple[str, ...], classes: tuple[str, ...], tmp_path: Path) -> None:
    """Under any name of its split and beside any other folder, with classes or without, and the rest is told."""
    below = [f"{name}/x.png" for name in classes] or ["x.png", "y.png"]
    fill(tmp_path, *(f"{folder}/{key}" for folder in folders for key in below))
    train, test = source(tmp_path), source(tmp_path, split="test")
    assert train.schema == test.schema
    assert train.schema.class_names == classes
    assert (values(train), values(test)) == ([0, 1], [2, 3])
    first = min(f"{folders[2]}/{key}" for key in below)
    told = (
        f"{tmp_path}: files that are not read: 2, {first} first, because they lie beside the folders of the splits: put "
        "them below train/ to have them read",
    )
    assert train.remarks == test.remarks == (told if "raw" in folders[2] else ())


def test_one_split_of_class_folders_is_read_alone(tmp_path: Path) -> None:
    """A folder that is called train and holds folders alone is no class; its neighbours, and stray images, are told."""
    found = source(fill(tmp_path, "train/a/0.png", "train/b/0.png", "raw/a/0.png", "stray.png"))
    assert found.schema.class_names == ("a", "b")
    assert values(found) == [0, 1]
    (remark,) = found.remarks
    assert "not read: 2, raw/a/0.png first, because they lie beside the folders of the splits" in remark


def test_data_without_the_wanted_split_is_refused(tmp_path: Path) -> None:
    """A test set beside something else is not trained on."""
    fill(tmp_path, "Test/a/0.png", "raw/a/0.png")
    with pytest.raises(
        SourceError, match="has no train/ folder for split 'train'; it has Test: set split, or rename the"
    ):
        source(tmp_path)
    assert values(source(tmp_path, split="test")) == [0]


def test_several_folders_of_one_split_are_read_together(tmp_path: Path) -> None:
    found = source(fill(tmp_path, "train_1/a/0.png", "train_2/b/0.png", "test/a/0.png"))
    assert found.schema.class_names == ("a", "b")
    assert values(found) == [0, 1]


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (("car", "plane", "train"), "train"),
        (("electric train", "steam train"), "electric train, steam train"),
        (("beaker", "test tube"), "test tube"),
        (("beaker", "dev board", "test tube"), "dev board, test tube"),
        (("test tube",), "test tube"),
        (("cat", "dog", "test"), "test"),
    ],
)
def test_classes_may_be_called_like_splits(classes: tuple[str, ...], named: str, tmp_path: Path) -> None:
    """Folders of images beside other folders of images are classes, which is said in case that they are splits."""
    found = source(fill(tmp_path, *(f"{name}/0.png" for name in classes)))
    assert found.schema.class_names == classes
    assert values(found) == list(range(len(classes)))
    assert found.remarks == (
        f"{tmp_path}: taken for classes and trained on although their names tell splits: {named}; where they are splits, "
        "leave only folders such as train/ and test/ beside each other",
    )
