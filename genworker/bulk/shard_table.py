"""The shards of a manifest as columns: some 95 bytes for each, where an object per shard would take ten times that.

In: entries, or the rows of a manifest's JSON. Out: a sequence of `ShardEntry` that are made when they are looked at, and the
same JSON again. It knows no store.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, overload

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainSerializer, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from genworker.config import Spec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**63)]  # fits a column
SHA256_BYTES = 32
_CHUNK = 10_000

_ROWS_BEGIN = b'"shards":['
# A key of printable ASCII without a quote or a backslash, so that its bytes mean themselves.
_ROW = re.compile(
    rb'\{"key":"([ !#-\[\]-~]*)","num_bytes":([1-9][0-9]{0,17}),"num_samples":([1-9][0-9]{0,17}),'
    rb'"sha256":"([0-9a-f]{64})"\}(,?)'
)


class ShardEntry(Spec):
    """One shard in the manifest.

    ``sha256`` is of the object under ``key``, which vouches for any files beside it; ``num_bytes`` counts these too.
    """

    key: str
    num_samples: Count
    num_bytes: Count
    sha256: Sha256


_ROWS = TypeAdapter(tuple[ShardEntry, ...])


class ShardTable(Sequence[ShardEntry]):
    """Shards in sample order.

    Attributes:
        num_samples: int64 [N].
        num_bytes: int64 [N].
        sha256: uint8 [N, 32].
    """

    def __init__(
        self,
        keys: Iterable[str],
        num_samples: npt.NDArray[np.int64],
        num_bytes: npt.NDArray[np.int64],
        sha256: npt.NDArray[np.uint8],
    ) -> None:
        self.num_samples, self.num_bytes, self.sha256 = num_samples, num_bytes, sha256
        names = bytearray()
        ends = np.zeros(len(num_samples) + 1, np.int64)
        for row, key in enumerate(keys, start=1):
            names += key.encode(errors="surrogatepass")
            ends[row] = len(names)
        self._names, self._ends = bytes(names), ends

    @classmethod
    def of(cls, shards: Iterable[ShardEntry]) -> ShardTable:
        """The same shards as a table."""
        return shards if isinstance(shards, ShardTable) else cls._joined([tuple(shards)])

    @classmethod
    def _joined(cls, chunks: Iterable[tuple[ShardEntry, ...]]) -> ShardTable:
        keys: list[str] = []
        numbers: list[tuple[int, int]] = []
        digests = bytearray()
        for chunk in chunks:
            keys += [entry.key for entry in chunk]
            numbers += [(entry.num_samples, entry.num_bytes) for entry in chunk]
            digests += b"".join(bytes.fromhex(entry.sha256) for entry in chunk)
        columns = np.array(numbers, np.int64).reshape(-1, 2)
        table = np.frombuffer(bytes(digests), np.uint8).reshape(-1, SHA256_BYTES)
        return cls(keys, columns[:, 0].copy(), columns[:, 1].copy(), table)

    @classmethod
    def scan(cls, text: bytes) -> tuple[ShardTable, bytes] | None:
        """Take the rows out of a manifest's canonical JSON, one by one and never as objects.

        Returns the table and the JSON without its rows; None for JSON that is written in another way.
        """
        start = text.find(_ROWS_BEGIN) + len(_ROWS_BEGIN)
        position, names, digests = start, bytearray(), bytearray()
        ends, num_bytes, num_samples = array("q", [0]), array("q"), array("q")
        while row := _ROW.match(text, position):
            names += row[1]
            ends.append(len(names))
            num_bytes.append(int(row[2]))
            num_samples.append(int(row[3]))
            digests += bytes.fromhex(row[4].decode())
            position = row.end()
            if not row[5]:
                break
        else:
            return None
        table = cls((), np.asarray(num_samples), np.asarray(num_bytes), np.asarray(digests).reshape(-1, SHA256_BYTES))
        table._names, table._ends = bytes(names), np.asarray(ends)
        return table, text[:start] + text[position:]

    def __len__(self) -> int:
        return len(self.num_samples)

    @overload
    def __getitem__(self, row: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[ShardEntry, ...]: ...
    def __getitem__(self, row: int | slice) -> ShardEntry | tuple[ShardEntry, ...]:
        if isinstance(row, slice):
            return tuple(self[number] for number in range(*row.indices(len(self))))
        row = range(len(self))[row]
        return ShardEntry.model_construct(
            key=self.key(row),
            num_samples=int(self.num_samples[row]),
            num_bytes=int(self.num_bytes[row]),
            sha256=self.sha256[row].tobytes().hex(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(ShardEntry.__eq__, self, other))

    def __hash__(self) -> int:
        return hash((self._names, self.num_bytes.tobytes(), self.sha256.tobytes()))

    def __repr__(self) -> str:
        return f"<ShardTable of {len(self)} shards>"

    def key(self, row: int) -> str:
        """The key of one shard."""
        return self._names[self._ends[row] : self._ends[row + 1]].decode(errors="surrogatepass")

    def find(self, sha256: str) -> str | None:
        """The key of a shard with that digest, if there is one."""
        wanted = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        rows = np.flatnonzero((self.sha256 == wanted).all(axis=1))
        return self.key(int(rows[0])) if len(rows) else None

    def canonical(self) -> Iterator[str]:
        """The canonical JSON of the rows, in pieces that belong between ``[`` and ``]``."""
        for first in range(0, len(self), _CHUNK):
            rows = [
                f'{{"key":{json.dumps(self.key(row), ensure_ascii=False)},"num_bytes":{self.num_bytes[row]},'
                f'"num_samples":{self.num_samples[row]},"sha256":"{self.sha256[row].tobytes().hex()}"}}'
                for row in range(first, min(first + _CHUNK, len(self)))
            ]
            yield ("," if first else "") + ",".join(rows)


def _read(value: Any, whole: ValidatorFunctionWrapHandler) -> ShardTable:
    """Rows to a table, a few at a time; a wrong one is told by the validator that knows its place."""
    if isinstance(value, ShardTable):
        return value
    if not isinstance(value, list | tuple) or len(value) <= _CHUNK:
        return ShardTable.of(whole(value))
    chunks = (value[first : first + _CHUNK] for first in range(0, len(value), _CHUNK))
    try:
        return ShardTable._joined(_ROWS.validate_python(chunk) for chunk in chunks)
    except ValidationError:
        return ShardTable.of(whole(value))


def _write(shards: Sequence[ShardEntry]) -> list[dict[str, Any]]:
    return [entry.model_dump() for entry in shards]


# What a model's field of shards is declared as; it takes entries, and rows of JSON.
Shards = Annotated[Sequence[ShardEntry], WrapValidator(_read), PlainSerializer(_write)]
