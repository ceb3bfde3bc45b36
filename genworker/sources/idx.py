"""Images in the IDX files of the MNIST family, gzipped or not, from a folder or an s3:// prefix.

In: train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz] (t10k-... for the test split). Out: grey uint8 images
in the size they have. Every count, size and label is checked; a file that is cut short is never read as a smaller one.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zlib
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from genworker.errors import SourceError
from genworker.sources.arrays import ArraySource
from genworker.sources.base import SourceConfig, Split, require_url
from genworker.stores import open_store

if TYPE_CHECKING:
    from genworker.schema import Int64Array, Pixels
    from genworker.stores.base import Store

_FILE_PREFIX = {"train": "train", "test": "t10k"}
# The largest collection of the family has 814,255 images of 28x28, 640 MB. A file that is a thousandth of that, gzipped, can
# claim as much, so its header is believed up to here only; more does not belong into memory.
_MAX_BYTES = 2**30
_MAX_LABELS = 2**24
_TOO_LARGE = (
    f"more than {_MAX_BYTES} bytes or {_MAX_LABELS} labels are not read, as all of it is held in memory: the file is damaged, "
    "or its images belong into another format, such as Parquet"
)


class IdxConfig(SourceConfig):
    """IDX files in a folder."""

    name: Literal["idx"] = "idx"
    num_classes: Annotated[int, Field(ge=1, le=256)] = Field(10, description="labels are 0 .. num_classes - 1")


class IdxSource(ArraySource):
    """Images and labels of one pair of IDX files."""

    Config: ClassVar[type[SourceConfig]] = IdxConfig

    def __init__(self, config: IdxConfig) -> None:
        url = require_url(config, "a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (.gz or not)")
        pixels, labels = read_idx_pair(open_store(url), config.split, config.num_classes)
        self._hold(pixels[: config.limit], labels[: config.limit], (), config.num_classes)


def find_idx_pair(keys: set[str], split: Split) -> tuple[str, str] | None:
    """The keys of images and labels of ``split`` among ``keys``, or None where one of the two is missing."""
    found = []
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        # Some collections write train-images.idx3-ubyte.
        bases = [f"{_FILE_PREFIX[split]}-{spelling}" for spelling in (part, part.replace("-idx", ".idx"))]
        found.append(next((key for base in bases for key in (base, f"{base}.gz") if key in keys), None))
    images, labels = found
    return (images, labels) if images and labels else None


def read_idx_pair(store: Store, split: Split, num_classes: int) -> tuple[Pixels, Int64Array]:
    """Read and check images [N, H, W, 1] and labels [N] of ``split``; raises SourceError naming the file."""
    prefix = _FILE_PREFIX[split]
    sizes = {info.key: info.size for info in store.list(f"{prefix}-")}
    pair = find_idx_pair(set(sizes), split)
    if pair is None:
        # Only a few: the URL may be the wrong one, with a million objects below it.
        seen = [info.key for info in itertools.islice(store.list(), 9)]
        raise SourceError(
            f"{store.url}: holds no {prefix}-images-idx3-ubyte and {prefix}-labels-idx1-ubyte (.gz or not), which the "
            f"{split} split needs; it holds {', '.join(seen[:8]) or 'nothing'}{', ...' if len(seen) > 8 else ''}"
        )
    images_key, labels_key = pair
    for key in pair:
        if sizes[key] > _MAX_BYTES:
            raise SourceError(f"{store.url}: {key}: has {sizes[key]} bytes; {_TOO_LARGE}")
    # Labels first: they are small, and their number has to be that of the images before these are unpacked.
    labels = _read_idx(store, labels_key, dims=1)
    images = _read_idx(store, images_key, dims=3, labels=labels)
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        raise SourceError(
            f"{store.url}: {labels_key}: label {labels[wrong[0]]} of image {wrong[0]} is not below num_classes "
            f"{num_classes}; set num_classes to at least {int(labels.max()) + 1}"
        )
    return images[..., np.newaxis], labels.astype(np.int64)


def _read_idx(
    store: Store, key: str, *, dims: int, labels: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Unpack as much as the header tells, as many as ``labels`` and no more than fits into memory."""
    where = f"{store.url}: {key}"
    raw = store.get(key)
    stream: io.BufferedIOBase = gzip.GzipFile(fileobj=io.BytesIO(raw)) if raw[:2] == b"\x1f\x8b" else io.BytesIO(raw)
    try:
        header = stream.read(4 + 4 * dims)
        if len(header) < 4 + 4 * dims:
            raise SourceError(f"{where}: is {len(header)} bytes long, shorter than the {4 + 4 * dims} of an IDX header")
        magic, *shape = struct.unpack(f">{1 + dims}I", header)
        expected_magic = 0x0800 + dims
        if magic != expected_magic:
            raise SourceError(
                f"{where}: begins with 0x{magic:08x}; an IDX file of {'images' if dims == 3 else 'labels'} begins with "
                f"0x{expected_magic:08x} (unsigned bytes, {dims} dimension{'s' if dims > 1 else ''})"
            )
        expected = int(np.prod(shape, dtype=object))
        if expected == 0:
            raise SourceError(f"{where}: its header tells a shape of {_times(shape)}, so it holds nothing")
        if expected > (_MAX_BYTES if dims == 3 else _MAX_LABELS):
            raise SourceError(f"{where}: its header tells a shape of {_times(shape)}; {_TOO_LARGE}")
        if labels is not None and shape[0] != len(labels):
            raise SourceError(
                f"{where}: holds {shape[0]} images but there are {len(labels)} labels; both must be of the same split and "
                "complete"
            )
        # One byte more than the header promises, so that a longer file is noticed without being unpacked whole.
        body = stream.read(expected + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise SourceError(f"{where}: is damaged or cut short ({len(raw)} bytes): {err}; fetch it again") from err
    if len(body) != expected:
        seen = f"only {len(body)}" if len(body) < expected else "more"
        raise SourceError(
            f"{where}: holds {seen} bytes after its header, which tells a shape of {_times(shape)} = {expected}; "
            "fetch it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _times(shape: list[int]) -> str:
    return "x".join(str(size) for size in shape)
