"""WebDataset shards: a tar file with the members of one sample side by side, <sample index>.<image extension> first.

After it stand, where the dataset has them, <sample index>.cls (the label), .latents.npy (float32) and .json (the score).

In: `SampleBatch`es and a codec. Out: the bytes of a POSIX tar file (ustar), the same however the batches were cut, on any
machine at any time. What the shard says about itself, and a CRC-32 of its members, stand in the comment of a pax global
header at the front, as git does it: every tar reader skips it, so that samples are all that WebDataset readers see.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from genworker.errors import DatasetError
from genworker.formats import ustar
from genworker.formats.base import no_objects
from genworker.formats.checks import check_samples
from genworker.schema import NO_EXTRAS, SampleBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genworker.codecs.base import Codec
    from genworker.formats.base import Get, Put
    from genworker.schema import Extras, Float32Array, ImageSchema, Int64Array

_KEY = re.compile(r"([0-9]{12,18})\.([0-9a-z.]+)")
_LABEL, _LATENTS, _SCORE = "cls", "latents.npy", "json"

# A shard is built in memory and put in one piece. Tar itself knows no such limit.
_MAX_SHARD_BYTES = 2**31 - 1 - 2**16

_DECODE_ROWS = 1024
_DECODE_BYTES = 64 * 2**20


class WebDatasetFormat:
    """Follows `base.Format`."""

    name: ClassVar[str] = "webdataset"
    suffix: ClassVar[str] = ".tar"
    arrow: ClassVar[str | None] = None
    library = "ustar 1"

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras = NO_EXTRAS) -> None:
        self._schema = schema
        self._codec = codec
        self._extras = extras

    def max_samples_per_shard(self) -> int:
        """How many samples fit into 2 GiB, if each image is as large as the codec can make it."""
        small = 2 * ustar.BLOCK * (bool(self._schema.num_classes) + self._extras.score)
        latent_dim = self._extras.latent_dim
        latents = ustar.BLOCK + ustar.padded(len(_npy_header(latent_dim)) + 4 * latent_dim) if latent_dim else 0
        return _MAX_SHARD_BYTES // (ustar.BLOCK + ustar.padded(self._codec.max_bytes) + small + latents)

    def beside_name(self, sample_index: int) -> str | None:
        """Nothing lies beside such shards."""
        del sample_index
        return None

    def writer(self, provenance: Mapping[str, str], put: Put = no_objects) -> WebDatasetShardWriter:
        """Start a shard."""
        del put
        return WebDatasetShardWriter(self._schema, self._codec, self._extras, provenance)

    def reader(self, data: bytes, get: Get = no_objects) -> WebDatasetShardReader:
        """Open a shard; raises DatasetError when the bytes are not a whole shard that this format wrote."""
        del get
        return WebDatasetShardReader(self._schema, self._codec, self._extras, data)


class WebDatasetShardWriter:
    """Follows `base.ShardWriter`."""

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras, provenance: Mapping[str, str]) -> None:
        self._schema = schema
        self._codec = codec
        self._extras = extras
        self._provenance = provenance
        self._start = len(ustar.global_header(provenance, 0))
        self._tar = io.BytesIO()
        self._tar.seek(self._start)
        self._empty, self._closed = True, False

    def write(self, batch: SampleBatch, encoded: Sequence[bytes] | None = None) -> None:
        """Append samples, encoded here unless that was done before.

        Raises:
            ValueError: pixels of another shape; labels, latents or scores missing, not wanted, or impossible.
        """
        check_samples(batch, self._schema, self._extras)
        images = encoded or map(self._codec.encode, batch.pixels)
        for row, (index, image) in enumerate(zip(batch.sample_index.tolist(), images, strict=True)):
            self._empty = False
            key = f"{index:012d}"
            self._add(f"{key}.{self._codec.extension}", image)
            if batch.labels is not None:
                self._add(f"{key}.{_LABEL}", b"%d" % batch.labels[row])
            if batch.latents is not None:
                self._add(f"{key}.{_LATENTS}", _npy(batch.latents[row]))
            if batch.scores is not None:
                self._add(f"{key}.{_SCORE}", _score_text(float(batch.scores[row])))

    def close(self) -> bytes:
        """Return the tar file; raises ValueError when nothing was written."""
        if self._closed or self._empty:
            raise ValueError("the shard was closed before" if self._closed else "a shard holds at least one sample")
        self._closed = True
        self._tar.write(bytes(ustar.end_of(self._tar.tell()) - self._tar.tell()))
        with self._tar.getbuffer() as whole:
            header = ustar.global_header(self._provenance, zlib.crc32(whole[self._start :]))
            whole[: self._start] = header
        # No copy: the buffer hands its bytes over.
        return self._tar.getvalue()

    def _add(self, name: str, data: bytes) -> None:
        self._tar.write(ustar.header(name, len(data), ustar.FILE))
        self._tar.write(data)
        self._tar.write(bytes(-len(data) % ustar.BLOCK))


class _Member(NamedTuple):
    key: str
    extension: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.start + ustar.padded(self.size)


class WebDatasetShardReader:
    """Follows `base.ShardReader`; holds the shard's bytes, and of each sample its index, label and place.

    Only what the writer writes is read: other names (and so any path), links, devices, other owners or times are
    refused, and nothing is ever extracted.
    """

    def __init__(self, schema: ImageSchema, codec: Codec, extras: Extras, data: bytes) -> None:
        self._schema = schema
        self._codec = codec
        self._extras = extras
        self._data = data
        self.num_bytes = len(data)
        self._provenance, start = ustar.read_global_header(data)
        indices: list[int] = []
        labels: list[int] = []
        scores: list[float] = []
        places: list[tuple[int, int]] = []
        latents: list[int] = []
        while (image := self._member(start)) is not None:
            if image.extension != codec.extension:
                raise DatasetError(
                    f"WebDataset shard: member {image.key}.{image.extension} stands where an image "
                    f"(.{codec.extension}) is due"
                )
            indices.append(int(image.key))
            places.append((image.start, image.size))
            member = image
            if schema.num_classes:
                member = self._next(member, _LABEL)
                labels.append(self._label(member))
            if extras.latent_dim:
                member = self._next(member, _LATENTS)
                latents.append(self._place_of_latents(member))
            if extras.score:
                member = self._next(member, _SCORE)
                scores.append(self._score(member))
            start = member.end
        if len(data) != ustar.end_of(start) or data.count(0, start) != len(data) - start:
            raise DatasetError(
                f"WebDataset shard: what follows the last member, at byte {start}, is no end of a tar file"
            )
        self._indices = np.array(indices, np.int64)
        self._labels = np.array(labels, np.int64) if schema.num_classes else None
        self._scores = np.array(scores, np.float32) if extras.score else None
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._latents = np.array(latents, np.int64)
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
            latents=self._read_latents(first, stop),
            scores=None if self._scores is None else self._scores[first:stop].copy(),
        )

    def _read_latents(self, first: int, stop: int) -> Float32Array | None:
        if not self._extras.latent_dim:
            return None
        rows = [
            np.frombuffer(self._data, "<f4", self._extras.latent_dim, start)
            for start in self._latents[first:stop].tolist()
        ]
        return np.stack(rows).astype(np.float32)

    def _member(self, position: int) -> _Member | None:
        """The member whose header starts at ``position``, or None at a block of zeros or past the end."""
        header = self._data[position : position + ustar.BLOCK]
        if not any(header[:100]):
            return None
        name = header[:100].rstrip(b"\0").decode("ascii", "replace")
        size = int(header[124:135], 8) if re.fullmatch(rb"[0-7]{11}", header[124:135]) else -1
        match = _KEY.fullmatch(name)
        end = position + ustar.BLOCK + size
        if match is None or not 0 <= size <= len(self._data) - ustar.BLOCK or end > len(self._data):
            raise DatasetError(f"WebDataset shard: member {name!r} at byte {position} is none of a shard of genworker")
        if header != ustar.header(name, size, ustar.FILE):
            raise DatasetError(
                f"WebDataset shard: member {name!r} at byte {position} is no plain file as genworker writes it"
            )
        return _Member(match[1], match[2], position + ustar.BLOCK, size)

    def _next(self, last: _Member, extension: str) -> _Member:
        """The member of the same sample that has to stand after ``last``."""
        member = self._member(last.end)
        if member is None or (member.key, member.extension) != (last.key, extension):
            what = {_LABEL: "label", _LATENTS: "latents", _SCORE: "score"}[extension]
            raise DatasetError(f"WebDataset shard: sample {last.key} has no {what} (member {last.key}.{extension})")
        return member

    def _label(self, member: _Member) -> int:
        text = self._data[member.start : member.start + member.size]
        if not re.fullmatch(rb"[0-9]{1,18}", text):
            raise DatasetError(
                f"WebDataset shard: the label of sample {member.key} is {text[:20]!r}, which is no number"
            )
        return int(text)

    def _score(self, member: _Member) -> float:
        text = self._data[member.start : member.start + member.size]
        match = re.fullmatch(rb'\{"score": (-?[0-9.e+-]{1,20})\}', text)
        try:
            score = float(match[1]) if match else None
        except ValueError:
            score = None
        if score is None or text != _score_text(score):
            raise DatasetError(f"WebDataset shard: the score of sample {member.key} is {text[:40]!r}, which is none")
        return score

    def _place_of_latents(self, member: _Member) -> int:
        header = _npy_header(self._extras.latent_dim)
        if member.size != len(header) + 4 * self._extras.latent_dim or not self._data.startswith(header, member.start):
            raise DatasetError(
                f"WebDataset shard: the latents of sample {member.key} are no array of {self._extras.latent_dim} float32"
            )
        return member.start + len(header)


def _npy(latents: Float32Array) -> bytes:
    return _npy_header(len(latents)) + latents.astype("<f4").tobytes()


def _npy_header(length: int) -> bytes:
    """The beginning of a .npy file of one row (version 1.0); made here so that its bytes do not depend on numpy's version."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % length
    padded = text + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


def _score_text(score: float) -> bytes:
    # Nine digits tell any two float32 apart.
    return b'{"score": %s}' % f"{score:.9g}".encode()
