"""Receipts by shard index as columns: some 50 bytes for each shard of the plan, a small part of what objects would take.

In: receipts. Out: a mapping that makes them when they are looked at, and the columns themselves for a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import numpy as np
import numpy.typing as npt

from genworker.bulk.records import Receipt
from genworker.bulk.shard_table import SHA256_BYTES


class ReceiptTable(MutableMapping[int, Receipt]):
    """Receipts of a plan of ``num_shards`` shards, without where their time went.

    Attributes:
        there: bool [num_shards].
        num_samples: int64 [num_shards]; zero where there is no receipt, as in all columns.
        num_bytes: int64 [num_shards].
        sha256: uint8 [num_shards, 32].
    """

    def __init__(self, num_shards: int, receipts: Mapping[int, Receipt] | None = None) -> None:
        self.there = np.zeros(num_shards, np.bool_)
        self.num_samples = np.zeros(num_shards, np.int64)
        self.num_bytes = np.zeros(num_shards, np.int64)
        self.sha256 = np.zeros((num_shards, SHA256_BYTES), np.uint8)
        self._attempt = np.zeros(num_shards, np.uint32)
        self._count = 0
        self.update(receipts or {})

    @classmethod
    def of(cls, num_shards: int, receipts: Mapping[int, Receipt]) -> ReceiptTable:
        """The same receipts as a table."""
        return receipts if isinstance(receipts, ReceiptTable) else cls(num_shards, receipts)

    def where(self, chosen: npt.NDArray[np.bool_]) -> ReceiptTable:
        """A table of the receipts that there are of chosen shards, bool [num_shards]."""
        table = ReceiptTable(len(self.there))
        table.there = self.there & chosen
        for name in ("num_samples", "num_bytes", "sha256", "_attempt"):
            getattr(table, name)[table.there] = getattr(self, name)[table.there]
        table._count = int(table.there.sum())
        return table

    def __getitem__(self, index: int) -> Receipt:
        if index not in self:
            raise KeyError(index)
        return Receipt.model_construct(
            shard_index=index,
            num_samples=int(self.num_samples[index]),
            num_bytes=int(self.num_bytes[index]),
            sha256=self.sha256[index].tobytes().hex(),
            attempt=int(self._attempt[index]),
        )

    def __setitem__(self, index: int, receipt: Receipt) -> None:
        if not 0 <= index < len(self.there):
            raise KeyError(index)
        self._count += not self.there[index]
        self.there[index] = True
        self.num_samples[index], self.num_bytes[index] = receipt.num_samples, receipt.num_bytes
        self.sha256[index] = np.frombuffer(bytes.fromhex(receipt.sha256), np.uint8)
        self._attempt[index] = receipt.attempt

    def __delitem__(self, index: int) -> None:
        if index not in self:
            raise KeyError(index)
        self._count -= 1
        self.there[index] = False
        for column in (self.num_samples, self.num_bytes, self.sha256, self._attempt):
            column[index] = 0

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < len(self.there) and bool(self.there[index])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return map(int, np.flatnonzero(self.there))

    def __repr__(self) -> str:
        return f"<ReceiptTable of {self._count} of {len(self.there)} shards>"
