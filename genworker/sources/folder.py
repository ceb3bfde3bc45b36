"""A folder or s3:// prefix of image files; the first level of subfolders names the classes.

In: PNG, JPEG, WebP and BMP files. Out: images of one size, in the order of their keys. Names that begin with a dot are
ignored; classes are folders that hold an image, because an object store knows no others. Folders of splits may stand above
them, see `splits.split_folders`. With a limit, the first classes come first. Each file is a block of its own: files are
fetched ahead, and kept while there is room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from genworker.config import digest_of
from genworker.errors import CorruptImageError, SourceError
from genworker.sources.base import Blocks, ResizedConfig, SourceConfig, Split, require_url, some_of
from genworker.sources.blocks import BlockSource
from genworker.sources.encoded import EncodedImage
from genworker.sources.images import MAX_ENCODED_BYTES
from genworker.sources.passed_over import remarks_on
from genworker.sources.splits import split_folders, split_of
from genworker.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.schema import Int64Array
    from genworker.stores.base import ObjectInfo, Store

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Images too, which are not read: a folder that holds some of them is larger than what is trained on.
_OTHER_IMAGES = (".gif", ".tif", ".tiff", ".jfif", ".jpe", ".jp2", ".jxl", ".avif", ".heic", ".heif", ".ppm", ".pgm")
# Requests for small files mostly wait; half of them go ahead of need.
_FETCHES = 32
# Files that are drawn from or fetched ahead: enough to keep all requests busy, and done in a second or two when a run ends.
_MOST_OPEN = 1024
# Of Python's objects around the bytes of a file.
_KEPT_BYTES = 2000
_MAX_NAMED = 5  # folders in a remark


class FolderConfig(ResizedConfig):
    """Image files in class folders; ``train/``, ``test/`` and other splits may stand above them."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"cache_bytes"})

    name: Literal["image-folder"] = "image-folder"
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        2**29,
        description="files that each worker process keeps in memory, those that were fetched ahead and those that were read "
        "last",
    )


@dataclass(frozen=True)
class File:
    """One file in memory: a block of one image."""

    encoded: EncodedImage

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return len(self.encoded.data) + _KEPT_BYTES

    def image(self, row: int) -> EncodedImage:
        """The image; ``row`` is 0."""
        del row
        return self.encoded


class FolderSource(BlockSource[File]):
    """Image files, decoded when they are read."""

    Config: ClassVar[type[SourceConfig]] = FolderConfig

    def __init__(self, config: FolderConfig) -> None:
        url = require_url(config, "a folder or s3:// prefix of images")
        self._store = open_store(url)
        found, others = _images(self._store)
        rule = f"only {', '.join(EXTENSIONS)} are read: convert or rename what is to be used"
        if not found:
            if others:
                raise SourceError(f"{url}: holds {len(others)} images such as {min(others)}; {rule}")
            raise SourceError(
                f"{url}: holds no images (files ending in {', '.join(EXTENSIONS)}); check the path, and that it is a "
                "folder of images or of class folders"
            )
        splits = split_folders(info.key for info in found)
        read = _folders_of(url, splits, config.split)
        known = [info for info in found if not splits or _top(info.key) in splits]
        classes = _class_names(url, [info.key for info in known], depth=1 if splits else 0)
        self._files = sorted((i for i in known if not splits or _top(i.key) in read), key=lambda i: i.key)[
            : config.limit
        ]
        numbers = {name: number for number, name in enumerate(classes)}
        self._labels = [_label(info.key.partition("/")[2] if splits else info.key, numbers) for info in self._files]
        super().__init__(
            url=url,
            schema=config.image_schema(len(classes), classes),
            rows=np.ones(len(self._files), np.int64),
            sizes=np.array([info.size + _KEPT_BYTES for info in self._files], np.int64),
            limit=None,
            max_corrupt=config.max_corrupt,
            cache_bytes=config.cache_bytes,
            fetches=_FETCHES,
        )
        self.blocks = Blocks(self.blocks.ends, min(self.blocks.window, _MOST_OPEN))
        astray = "they lie beside the folders of the splits: put them below train/ to have them read"
        self.remarks = remarks_on(
            url,
            ([info.key for info in found if splits and _top(info.key) not in splits], astray),
            ([key for key in others if not splits or split_of(_top(key)) in (None, config.split)], rule),
        )
        if named := [name for name in classes if not splits and split_of(name)]:
            self.remarks += (
                f"{url}: taken for classes and trained on although their names tell splits: {some_of(named, _MAX_NAMED)}; "
                "where they are splits, leave only folders such as train/ and test/ beside each other",
            )

    def prefetch(self, indices: Int64Array) -> None:
        """Begin to fetch the files of the first images at ``indices``, no more than leave room for as many again."""
        super().prefetch(indices[: self.blocks.window])

    def digest(self) -> str:
        """SHA-256 over the key and size of every file; a file changed without a change of size goes unnoticed."""
        return digest_of([[info.key, info.size] for info in self._files])

    def _fetch_block(self, number: int) -> File:
        info: ObjectInfo = self._files[number]
        if info.size > MAX_ENCODED_BYTES:
            raise CorruptImageError(f"is {info.size} bytes long; the limit is {MAX_ENCODED_BYTES}")
        return File(EncodedImage(self._store.get(info.key), self._labels[number]))

    def _name(self, index: int) -> str:
        return self._files[index].key


def _images(store: Store) -> tuple[list[ObjectInfo], list[str]]:
    """The images below a store's URL, and the keys of those of kinds that are not read."""
    found, others = [], []
    for info in store.list():
        if any(part.startswith(".") for part in info.key.split("/")):
            continue
        if info.key.lower().endswith(EXTENSIONS):
            found.append(info)
        elif info.key.lower().endswith(_OTHER_IMAGES):
            others.append(info.key)
    return found, others


def _folders_of(url: str, splits: dict[str, str], split: Split) -> set[str]:
    """The folders of one split; none where the data has no folders for splits, so that all of it is read."""
    read = {top for top, told in splits.items() if told == split}
    if splits and not read:
        raise SourceError(
            f"{url}: has no {split}/ folder for split {split!r}; it has {', '.join(splits)}: set split, or rename the folder "
            "that is meant"
        )
    if not splits and split != "train":
        raise SourceError(
            f"{url}: has no split {split!r}: all its images count as training data; put them under train/ and test/ "
            "to tell them apart"
        )
    return read


def _top(key: str) -> str:
    """The folder at the top that a key lies in, empty for none."""
    return key.partition("/")[0] if "/" in key else ""


def _class_names(url: str, keys: Sequence[str], *, depth: int) -> tuple[str, ...]:
    """Sorted names of the class folders of all splits, so that a class has the same number in each."""
    folders: dict[str | None, str] = {}
    for key in keys:
        parts = key.split("/")[depth:]
        folders.setdefault(parts[0] if len(parts) > 1 else None, key)
    if None in folders and len(folders) > 1:
        example = next(key for folder, key in folders.items() if folder is not None)
        raise SourceError(
            f"{url}: holds images in class folders ({example}) and outside of them ({folders[None]}); put each image "
            "into a class folder, or all of them beside each other for unlabelled data"
        )
    return tuple(sorted(folder for folder in folders if folder is not None))


def _label(key: str, numbers: dict[str, int]) -> int:
    return numbers[key.partition("/")[0]] if numbers else 0
