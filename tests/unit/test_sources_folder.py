"""An image folder's classes, order and splits come from its names alone; corrupt files are replaced and named."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from genworker.errors import ObjectMissingError, SourceError
from genworker.sources.folder import FolderConfig, FolderSource
from genworker.training.loader import Loader
from genworker.training.order import Order
from genworker.training.spec import TrainSpec
from tests.fakes import models

if TYPE_CHECKING:
    from pathlib import Path


def picture(value: int, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (value, value, value)).save(
        buffer, format_, **({"lossless": True} if format_ == "WEBP" else {})
    )
    return buffer.getvalue()


def fill(folder: Path, names: dict[str, int | bytes]) -> Path:
    for name, content in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else picture(content))
    return folder


def source(folder: Path, **more: Any) -> FolderSource:
    return FolderSource(FolderConfig(url=str(folder), image_size=8, **more))


def values(source_: FolderSource, *indices: int) -> list[int]:
    """The grey value of the images at ``indices``, all of them by default."""
    batch = source_.read(np.array(indices or range(len(source_)), np.int64))
    return [int(v) for v in batch.pixels[:, 4, 4, 0]]


def labels(source_: FolderSource) -> list[int] | None:
    found = source_.read(np.arange(len(source_))).labels
    return None if found is None else found.tolist()


def test_class_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    """Classes are the sorted names of the folders, and images of deeper folders belong to the folder at the top."""
    found = source(fill(tmp_path, {"dog/1.png": 1, "cat/z.png": 2, "cat/deep/er/a.png": 3, "ant/1.png": 4}))
    assert found.schema.class_names == ("ant", "cat", "dog")
    assert found.schema.num_classes == 3
    assert values(found) == [4, 3, 2, 1]
    assert labels(found) == [0, 1, 1, 2]


def test_images_beside_each_other_are_unlabelled(tmp_path: Path) -> None:
    """Without folders there are no classes and no labels."""
    found = source(fill(tmp_path, {"b.png": 2, "a.png": 1}))
    assert found.schema.num_classes == 0
    assert values(found) == [1, 2]
    assert labels(found) is None


def test_all_formats_are_found_whatever_their_case(tmp_path: Path) -> None:
    """Each supported extension is read in upper and lower case, and other files are left alone."""
    formats = {"a.PNG": "PNG", "b.Jpg": "JPEG", "c.JPEG": "JPEG", "d.webp": "WEBP", "e.BMP": "BMP"}
    files: dict[str, int | bytes] = {name: picture(100, format_) for name, format_ in formats.items()}
    found = source(fill(tmp_path, files | {"notes.txt": b"hello", "png": b"", "x.gif": b"GIF89a"}))
    assert values(found) == [100] * 5


def test_images_that_are_not_read_are_one_remark(tmp_path: Path) -> None:
    """Images of kinds that are not decoded are counted and the first is named; those of another split are not missed."""
    fill(tmp_path, {"train/a/0.png": 1, "train/b/1.GIF": BROKEN, "train/a/2.tif": BROKEN, "stray.jfif": BROKEN})
    fill(
        tmp_path,
        {"test/a/3.gif": BROKEN, "train/a/0.txt": b"a caption", "train/a/0.json": b"{}", "train/.x/4.gif": b""},
    )
    (remark,) = source(tmp_path).remarks
    assert remark == (
        f"{tmp_path}: files that are not read: 3, stray.jfif first, because only .png, .jpg, .jpeg, .webp, .bmp are read: "
        "convert or rename what is to be used"
    )
    fill(tmp_path, {"test/a/0.png": 2})
    (remark,) = source(tmp_path, split="test").remarks
    assert "not read: 2, stray.jfif first" in remark


def test_a_folder_of_other_images_is_refused_with_what_is_read(tmp_path: Path) -> None:
    """Where no image can be read, the ones that are there are named."""
    with pytest.raises(SourceError, match=r"holds 2 images such as a/1\.tif; only \.png, .* are read: convert"):
        source(fill(tmp_path, {"a/1.tif": b"", "b/2.gif": b""}))


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    """What a desktop or a version control system leaves behind is no image and no class."""
    hidden: dict[str, int | bytes] = {"a/._1.png": b"Mac", ".git/x.png": 7, "a/.cache/1.png": 7}
    found = source(fill(tmp_path, {"a/1.png": 1, **hidden}))
    assert found.schema.class_names == ("a",)
    assert values(found) == [1]


def test_images_inside_and_outside_of_classes_are_refused(tmp_path: Path) -> None:
    """A stray image beside class folders has no class, and the error names it."""
    with pytest.raises(SourceError, match=r"in class folders \(cat/1.png\) and outside of them \(stray.png\)"):
        source(fill(tmp_path, {"cat/1.png": 1, "stray.png": 2}))


def test_split_folders_are_told_apart(tmp_path: Path) -> None:
    """Below train/ and test/ lie the same classes with the same numbers, even where a split lacks one of them."""
    fill(tmp_path, {"train/b/1.png": 1, "train/c/1.png": 2, "test/a/1.png": 3, "test/c/1.png": 4})
    train, test = source(tmp_path), source(tmp_path, split="test")
    assert train.schema == test.schema
    assert train.schema.class_names == ("a", "b", "c")
    assert (values(train), labels(train)) == ([1, 2], [1, 2])
    assert (values(test), labels(test)) == ([3, 4], [0, 2])


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Asking for a split without a folder tells which splits there are."""
    with pytest.raises(SourceError, match="no test/ folder for split 'test'; it has train, validation"):
        source(fill(tmp_path, {"train/1.png": 1, "validation/1.png": 2}), split="test")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """A folder of vehicles has a class named train, which is no split."""
    assert source(fill(tmp_path, {"train/1.png": 1, "tram/1.png": 2})).schema.class_names == ("train", "tram")


def test_a_file_as_url_is_refused(tmp_path: Path) -> None:
    """A URL that names a file instead of a folder is refused with the path."""
    fill(tmp_path, {"a.png": 1})
    with pytest.raises(Exception, match=r"a\.png: this is a file"):
        source(tmp_path / "a.png")


BROKEN = b"this is no image"


def test_a_corrupt_image_is_replaced_by_the_next_good_one(tmp_path: Path) -> None:
    """The substitute is the next good image with its own label, the batch tells so, and each file is named once."""
    fill(tmp_path, {"a/0.png": 10, "a/1.png": BROKEN, "a/2.png": BROKEN, "b/3.png": 13, "b/4.png": BROKEN})
    found = source(tmp_path)
    for _ in range(2):
        batch = found.read(np.array([1, 0, 2, 3, 4, 1]))
        assert batch.pixels[:, 0, 0, 0].tolist() == [13, 10, 13, 13, 10, 13]
        assert batch.sample_index.tolist() == [3, 0, 3, 3, 0, 3]
        assert batch.labels is not None
        assert batch.labels.tolist() == [1, 0, 1, 1, 0, 1]
    assert found.corrupt == ["a/1.png", "a/2.png", "b/4.png"]


def test_the_substitute_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    """A resumed run that has not met a corrupt file yet gets the same images as the run that had."""
    fill(tmp_path, {f"{n}.png": BROKEN if n in (3, 4, 9) else n for n in range(10)})
    first, second = source(tmp_path), source(tmp_path)
    values(first)
    for index in (9, 4, 3):
        assert values(first, index) == values(second, index)


def test_too_many_corrupt_images_stop_the_run(tmp_path: Path) -> None:
    """One more than max_corrupt raises an error that names the files, the reason and the next step."""
    fill(tmp_path, {"0.png": 1, "1.png": BROKEN, "2.png": BROKEN, "3.png": picture(1)[:60]})
    assert values(source(tmp_path, max_corrupt=3)) == [1, 1, 1, 1]
    message = "3 of 4 images cannot be used, more than max_corrupt 2: 1.png, 2.png, 3.png; .* cannot be decoded: "
    with pytest.raises(SourceError, match=message + ".* raise max_corrupt$"):
        values(source(tmp_path, max_corrupt=2))


def test_no_good_image_at_all_stops_the_run(tmp_path: Path) -> None:
    """A folder of nothing but broken files ends in an error, not in an endless search for a substitute."""
    with pytest.raises(SourceError, match=r"2 of 2 images cannot be used, so no image is left: 0.png, 1.png"):
        values(source(fill(tmp_path, {"0.png": BROKEN, "1.png": BROKEN})), 0)


def test_a_file_that_vanishes_is_an_error(tmp_path: Path) -> None:
    """A file that was listed and is gone is no corrupt image: the data changed under the run."""
    found = source(fill(tmp_path, {"0.png": 1, "1.png": 2}))
    (tmp_path / "1.png").unlink()
    with pytest.raises(Exception, match=r"1\.png"):
        values(found, 1)
    assert found.corrupt == []


def test_a_relative_folder_is_the_reading_process_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative URL is made absolute where the spec is read, because workers open it from elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert FolderConfig(url="photos", image_size=8).url == str(tmp_path / "photos")
    assert FolderConfig(url="s3://bucket/photos", image_size=8).url == "s3://bucket/photos"


NUM_FILES = 120


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many files as there are numbers below 120, each in a class and a grey of its own."""
    folder = tmp_path_factory.mktemp("many")
    return fill(folder, {f"{n:03}/{n:03}.png": n for n in range(NUM_FILES)})


class Post:
    """A store in which every file takes another time to come; it counts what is asked for."""

    def __init__(self, source_: FolderSource, milliseconds: int) -> None:
        self.asked: list[str] = []
        self.at_once = self._now = 0
        self._store, self._milliseconds = source_._store, milliseconds
        self._lock = threading.Lock()
        source_._store = self  # type: ignore[assignment]

    def get(self, key: str) -> bytes:
        with self._lock:
            self.asked.append(key)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(int(key[:3]) * 7 % 5 * self._milliseconds / 1000)
        with self._lock:
            self._now -= 1
        return self._store.get(key)


def drawn(source_: FolderSource, count: int) -> list[int]:
    """The labels of the first ``count`` images of a run; each picture is that of its label."""
    found: list[int] = []
    with Loader(source_, batch_size=20, seed=1) as loader:
        while len(found) < count:
            batch = next(loader)
            assert batch.labels is not None
            assert ((batch.images[:, 0, 4, 4] + 1) * 127.5).round().long().tolist() == batch.labels.tolist()
            found += batch.labels.tolist()
    return found


@pytest.mark.parametrize("files_kept", [0, 10, 50, 10_000])
def test_neither_time_nor_the_cache_decides_the_order(many: Path, files_kept: int) -> None:
    """An epoch is the permutation that it would be without fetching ahead, whenever files come and however many are kept."""
    slow = source(many, cache_bytes=files_kept * 2_100)
    assert isinstance(slow.blocks.window, int)
    post = Post(slow, milliseconds=2)
    expected = Order(NUM_FILES, 1).indices(np.arange(2 * NUM_FILES))
    assert drawn(slow, 2 * NUM_FILES) == expected.tolist()
    assert slow._cache.held_bytes <= max(files_kept, 1) * 2_100
    assert post.at_once <= min(slow.blocks.window, 32)
    if files_kept > NUM_FILES:  # all fit: the second epoch asks for none again
        assert sorted(post.asked) == [info.key for info in slow._files]


def test_files_are_fetched_before_they_are_read_within_the_bound(many: Path) -> None:
    """What is announced comes without being read, no more of it than half of the cache holds, and is not asked for again."""
    found = source(many, cache_bytes=40 * 2_100)
    window = found.blocks.window
    assert 15 <= window <= 20
    post = Post(found, milliseconds=0)
    found.prefetch(np.arange(NUM_FILES))
    deadline = time.monotonic() + 10
    while len(found._cache) < window and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(post.asked) == [info.key for info in found._files[:window]]
    assert found._cache.held_bytes <= 40 * 2_100
    assert values(found, *range(window)) == list(range(window))
    assert len(post.asked) == window


def test_a_file_that_vanishes_is_named_though_it_was_announced(tmp_path: Path) -> None:
    """Fetching ahead hides no failure: whoever reads the image hears of its file, and others still come."""
    found = source(fill(tmp_path, {"0.png": 1, "1.png": 2, "2.png": 3}))
    (tmp_path / "1.png").unlink()
    found.prefetch(np.arange(3))
    with pytest.raises(ObjectMissingError, match=r"1\.png.*there is no such object"):
        values(found)
    assert values(found, 0, 2) == [1, 3]


def test_a_run_goes_on_with_another_cache() -> None:
    """The cache decides no image, so a checkpoint is not refused for it."""

    def spec(**data: Any) -> TrainSpec:
        values = models.train_spec().model_dump(mode="json")
        return TrainSpec.parse(
            values | {"data": {"name": "image-folder", "url": "/x", "image_size": 8} | data}, origin="test"
        )

    assert spec(cache_bytes=0).spec_id == spec().spec_id
    assert spec(limit=7).spec_id != spec().spec_id
