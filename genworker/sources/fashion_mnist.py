"""Fashion-MNIST: 28x28 grey pictures of ten kinds of clothes, 60,000 to train on and 10,000 to test with.

In: the four IDX files, or ``url: shipped`` for the first 10,000 training images, which are part of this package.
Out: the same images and class numbers either way. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from genworker.errors import SourceError
from genworker.sources.arrays import ArraySource
from genworker.sources.base import SourceConfig, Split
from genworker.sources.idx import find_idx_pair, read_idx_pair
from genworker.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence


SHIPPED = "shipped"
SHIPPED_FOLDER = Path(__file__).parent / "data" / "fashion_mnist_10k"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionMnistConfig(SourceConfig):
    """Fashion-MNIST from IDX files, or the 10,000 training images that ship with genworker."""

    special_urls: ClassVar[frozenset[str]] = frozenset({SHIPPED})

    name: Literal["fashion-mnist"] = "fashion-mnist"
    url: str | None = Field(
        None,
        description="folder or s3:// prefix with the IDX files; 'shipped' for the 10,000 that ship; without it, "
        "$GENWORKER_DATA/fashion-mnist and the folder of Debian's dataset-fashion-mnist are tried",
    )


class FashionMnistSource(ArraySource):
    """Fashion-MNIST in memory (47 MB for all 60,000)."""

    Config: ClassVar[type[SourceConfig]] = FashionMnistConfig

    def __init__(self, config: FashionMnistConfig) -> None:
        if config.url == SHIPPED:
            url = str(_shipped_folder(config.split))
        else:
            url = config.url or str(find_folder(usual_folders(), config.split))
        pixels, labels = read_idx_pair(open_store(url), config.split, len(CLASS_NAMES))
        if pixels.shape[1:3] != (28, 28):
            raise SourceError(
                f"{url}: holds images of {pixels.shape[1]}x{pixels.shape[2]}, but Fashion-MNIST has 28x28; "
                "read other IDX files with data.name idx"
            )
        self._hold(pixels[: config.limit], labels[: config.limit], CLASS_NAMES, len(CLASS_NAMES))


def usual_folders() -> list[Path]:
    """Where the IDX files are looked for when no URL is given: what the user set first, then what Debian installs."""
    own = os.environ.get("GENWORKER_DATA")
    return [*([Path(own) / "fashion-mnist"] if own else []), DEBIAN_FOLDER]


def find_folder(folders: Sequence[Path], split: Split) -> Path:
    """The first of ``folders`` with images and labels of ``split``; raises SourceError that says how to get them."""
    for folder in folders:
        if folder.is_dir() and find_idx_pair({path.name for path in folder.iterdir()}, split):
            return folder
    shipped = (
        "or set data.url to 'shipped' for the first 10,000 training images, which come with genworker"
        if split == "train"
        else "the 10,000 images that come with genworker are from the training split and cannot stand in for it"
    )
    raise SourceError(
        f"fashion-mnist: the IDX files of the {split} split are in none of {', '.join(map(str, folders))}; install "
        "Debian's or Ubuntu's package (apt install dataset-fashion-mnist), or set data.url to a folder (or fill "
        "$GENWORKER_DATA/fashion-mnist) with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz from "
        f"github.com/zalandoresearch/fashion-mnist; {shipped}"
    )


def _shipped_folder(split: Split) -> Path:
    if split != "train":
        raise SourceError(
            f"fashion-mnist: split {split!r} of url 'shipped': only the first 10,000 images of the training "
            "split ship with genworker; give a URL with the t10k files, or leave url out to search the usual places"
        )
    return SHIPPED_FOLDER
