"""WebDataset shards: a tar file with two members per sample, <sample index>.<image extension> and <sample index>.cls.

In: `SampleBatch`es and a codec. Out: the bytes of a POSIX tar file (ustar), the same however the batches were cut, on any
machine at any time. What the shard says about itself, and a CRC-32 of its members, stand in the comment of a pax global
header at the front, as git does it: every tar reader skips it, so that samples are all that WebDataset readers see.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from genworker.errors import DatasetError
from genworker.formats.checks import check_labels
from genworker.schema import SampleBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genworker.codecs.base import Codec
    from genworker.schema import ImageSchema, Int64Array

_BLOCK = 512
_RECORD = 20 * _BLOCK  # tar files end with two blocks of zeros and are filled up to a whole record
_GLOBAL_NAME = "pax_global_header"
_FILE, _GLOBAL = b"0", b"g"
_KEY = re.compile(r"([0-9]{12,18})\.([0-9a-z]+)")

# A shard is built in memory and put in one piece. Tar itself knows no such limit.
_MAX_SHARD_BYTES = 2**31 - 1 - 2**16

_DECODE_ROWS = 1024
_DECODE_BYTES = 64 * 2**20


class WebDatasetFormat:
    """Follows `base.Format`."""

    name: ClassVar[str] = "webdataset"
    extension: ClassVar[str] = "tar"
    arrow: ClassVar[str | None] = None
    library = "ustar 1"

    def __init__(self, schema: ImageSchema, codec: Codec) -> None:
        self._schema = schema
        self._codec = codec

    def max_samples_per_shard(self) -> int:
        """How many samples fit into 2 GiB, if each image is as large as the codec can make it."""
        label = 2 * _BLOCK if self._schema.num_classes else 0
        return _MAX_SHARD_BYTES // (_BLOCK + _padded(self._codec.max_bytes) + label)

    def writer(self, provenance: Mapping[str, str]) -> WebDatasetShardWriter:
        """Start a shard."""
        return WebDatasetShardWriter(self._schema, self._codec, provenance)

    def reader(self, data: bytes) -> WebDatasetShardReader:
        """Open a shard; raises DatasetError when the bytes are not a whole shard that this format wrote."""
        return WebDatasetShardReader(self._schema, self._codec, data)


class WebDatasetShardWriter:
    """Follows `base.ShardWriter`."""

    def __init__(self, schema: ImageSchema, codec: Codec, provenance: Mapping[str, str]) -> None:
        self._schema = schema
        self._codec = codec
        self._provenance = provenance
        self._start = len(_global_header(provenance, 0))
        self._tar = io.BytesIO()
        self._tar.seek(self._start)
        self._empty, self._closed = True, False

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples, encoded here unless that was done before.

        Raises:
            ValueError: pixels of another shape, labels missing, not wanted, or outside [0, num_classes).
        """
        check_labels(batch, self._schema)
        images = encoded or map(self._codec.encode, batch.pixels)
        for row, (index, image) in enumerate(zip(batch.sample_index.tolist(), images, strict=True)):
            self._empty = False
            self._add(f"{index:012d}.{self._codec.extension}", image)
            if batch.labels is not None:
                self._add(f"{index:012d}.cls", b"%d" % batch.labels[row])

    def close(self) -> bytes:
        """Return the tar file; raises ValueError when nothing was written."""
        if self._closed or self._empty:
            raise ValueError("the shard was closed before" if self._closed else "a shard holds at least one sample")
        self._closed = True
        self._tar.write(bytes(_end(self._tar.tell()) - self._tar.tell()))
        with self._tar.getbuffer() as whole:
            header = _global_header(self._provenance, zlib.crc32(whole[self._start :]))
            whole[: self._start] = header
        # No copy: the buffer hands its bytes over.
        return self._tar.getvalue()

    def _add(self, name: str, data: bytes) -> None:
        self._tar.write(_header(name, len(data), _FILE))
        self._tar.write(data)
        self._tar.write(bytes(-len(data) % _BLOCK))


class _Member(NamedTuple):
    key: str
    extension: str
    start: int
    size: int


class WebDatasetShardReader:
    """Follows `base.ShardReader`; holds the shard's bytes, and of each sample its index, label and place.

    Only what the writer writes is read: other names (and so any path), links, devices, other owners or times are
    refused, and nothing is ever extracted.
    """

    def __init__(self, schema: ImageSchema, codec: Codec, data: bytes) -> None:
        self._schema = schema
        self._codec = codec
        self._data = data
        self._provenance, start = _read_global_header(data)
        indices: list[int] = []
        labels: list[int] = []
        places: list[tuple[int, int]] = []
        while (image := self._member(start)) is not None:
            if image.extension != codec.extension:
                raise DatasetError(
                    f"WebDataset shard: member {image.key}.{image.extension} stands where an image "
                    f"(.{codec.extension}) is due"
                )
            indices.append(int(image.key))
            places.append((image.start, image.size))
            start = image.start + _padded(image.size)
            if schema.num_classes:
                label = self._member(start)
                labels.append(self._label(image.key, label))
                start += 2 * _BLOCK
        if len(data) != _end(start) or data.count(0, start) != len(data) - start:
            raise DatasetError(
                f"WebDataset shard: what follows the last member, at byte {start}, is no end of a tar file"
            )
        self._indices = np.array(indices, np.int64)
        self._labels = np.array(labels, np.int64) if schema.num_classes else None
        self._places = np.array(places, np.int64).reshape(-1, 2)
        promised = self._provenance.get("num_samples")
        if promised is not None and promised != str(len(self)):
            raise DatasetError(f"WebDataset shard: it has {len(self)} rows and says that it has {promised}")

    @property
    def provenance(self) -> Mapping[str, str]:
        """What `WebDatasetFormat.writer` was given."""
        return self._provenance

    def __len__(self) -> int:
        return len(self._indices)

    def sample_indices(self) -> Int64Array:
        """All sample indices in stored order, int64 [N]."""
        return self._indices.copy()

    def labels(self) -> Int64Array | None:
        """All labels in stored order, int64 [N]; None for unlabelled data."""
        return None if self._labels is None else self._labels.copy()

    def batches(self, first_row: int = 0) -> Iterator[SampleBatch]:
        """Decode and yield samples in stored order, from ``first_row`` on; raises DatasetError for a damaged image."""
        size = self._schema.height * self._schema.width * self._schema.channels
        step = max(1, min(_DECODE_ROWS, _DECODE_BYTES // size))
        for start in range(first_row, len(self), step):
            yield self._decode(start, min(start + step, len(self)))

    def read_row(self, row: int) -> SampleBatch:
        """Decode the one sample at position ``row``; raises IndexError outside [0, N)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the shard has {len(self)}")
        return self._decode(row, row + 1)

    def _decode(self, first: int, stop: int) -> SampleBatch:
        places = self._places[first:stop].tolist()
        return SampleBatch(
            sample_index=self._indices[first:stop].copy(),
            pixels=np.stack([self._codec.decode(self._data[start : start + size]) for start, size in places]),
            labels=None if self._labels is None else self._labels[first:stop].copy(),
        )

    def _member(self, position: int) -> _Member | None:
        """The member whose header starts at ``position``, or None at a block of zeros or past the end."""
        header = self._data[position : position + _BLOCK]
        if not any(header[:100]):
            return None
        name = header[:100].rstrip(b"\0").decode("ascii", "replace")
        size = int(header[124:135], 8) if re.fullmatch(rb"[0-7]{11}", header[124:135]) else -1
        match = _KEY.fullmatch(name)
        end = position + _BLOCK + size
        if match is None or not 0 <= size <= len(self._data) - _BLOCK or end > len(self._data):
            raise DatasetError(f"WebDataset shard: member {name!r} at byte {position} is none of a shard of genworker")
        if header != _header(name, size, _FILE):
            raise DatasetError(
                f"WebDataset shard: member {name!r} at byte {position} is no plain file as genworker writes it"
            )
        return _Member(match[1], match[2], position + _BLOCK, size)

    def _label(self, key: str, member: _Member | None) -> int:
        if member is None or (member.key, member.extension) != (key, "cls"):
            raise DatasetError(f"WebDataset shard: sample {key} has no label (member {key}.cls)")
        text = self._data[member.start : member.start + member.size]
        if not re.fullmatch(rb"[0-9]{1,18}", text):
            raise DatasetError(f"WebDataset shard: the label of sample {key} is {text[:20]!r}, which is no number")
        return int(text)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _end(position: int) -> int:
    """Length of a tar file whose last member ends at ``position``."""
    return -(-(position + 2 * _BLOCK) // _RECORD) * _RECORD


def _header(name: str, size: int, type: bytes) -> bytes:
    """One ustar header (POSIX.1-2001, pax): owner root, mode 644, time 0.

    Made here because the bytes that the standard library's tarfile makes have changed between versions of Python.
    """
    fields = (name.encode(), b"0000644", b"0000000", b"0000000", b"%011o" % size, b"%011o" % 0)
    rest = (type, b"", b"ustar\x0000", b"", b"", b"", b"")
    blank = struct.pack("100s8s8s8s12s12s8sc100s8s32s32s8s8s167x", *fields, b" " * 8, *rest)
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _global_header(provenance: Mapping[str, str], crc32: int) -> bytes:
    lines = {"version": 1, "crc32": f"{crc32:08x}", "provenance": dict(sorted(provenance.items()))}
    text = b" comment=" + json.dumps({"genworker": lines}, separators=(",", ":")).encode() + b"\n"
    # A pax record begins with its own length, in decimal, which counts itself.
    length = next(total for digits in range(1, 9) if len(str(total := digits + len(text))) == digits)
    record = b"%d" % length + text
    return _header(_GLOBAL_NAME, len(record), _GLOBAL) + record + bytes(-len(record) % _BLOCK)


def _read_global_header(data: bytes) -> tuple[dict[str, str], int]:
    """Provenance, and where the members start; raises DatasetError unless all that follows has the CRC-32 it should."""
    match = re.match(rb"[0-9]{1,5} comment=(.{1,65536})\n", data[_BLOCK : _BLOCK + 2**17])
    try:
        lines = json.loads(match[1])["genworker"] if match else {}
        provenance = {str(key): str(value) for key, value in lines["provenance"].items()}
        crc32 = int(lines["crc32"], 16)
        header = _global_header(provenance, crc32)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration, struct.error) as err:
        raise DatasetError(
            f"WebDataset shard of {len(data)} bytes: it does not begin as shards of genworker do; it is damaged or foreign"
        ) from err
    if not data.startswith(header):
        raise DatasetError(
            "WebDataset shard: its first header is not as this version of genworker writes it; the shard is damaged"
        )
    seen = zlib.crc32(memoryview(data)[len(header) :])
    if seen != crc32:
        raise DatasetError(
            f"WebDataset shard of {len(data)} bytes: its members have CRC-32 {seen:08x}, it says {crc32:08x}; it is cut "
            "short or was changed"
        )
    return provenance, len(header)
