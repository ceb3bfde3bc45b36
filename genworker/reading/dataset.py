"""A finished dataset as Python objects: samples in order, in batches, or by index.

In: the URL of a dataset. Out: `Sample`s and `SampleBatch`es whose shards were compared with the manifest. It never
writes, and never shows a dataset that is not finished.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal, get_args

from genworker.bulk.manifest import Fault, read_manifest
from genworker.errors import DatasetError, UsageError
from genworker.reading.samples import Sample, Samples, sample_of
from genworker.reading.shard import naming, open_shard
from genworker.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from genworker.bulk.plan import Plan
    from genworker.bulk.records import Manifest
    from genworker.formats.base import ShardReader
    from genworker.reading.torch_stream import TorchStream
    from genworker.schema import SampleBatch
    from genworker.stores.base import Store

# Random access jumps between neighbours and a few hot shards; each open one is held in memory as it is stored.
_MAX_OPEN_SHARDS = 4

OnBadShard = Literal["raise", "skip"]

_log = logging.getLogger(__name__)


class Dataset(Samples):
    """A finished dataset; made by `open_dataset`. Several threads may read it, and it can be pickled, for other processes.

    Attributes:
        url: where it lies.
        manifest: what it holds.
    """

    def __init__(self, store: Store, manifest: Manifest, *, verify: bool, on_bad_shard: OnBadShard = "raise") -> None:
        if on_bad_shard not in get_args(OnBadShard):
            raise UsageError(f"on_bad_shard {on_bad_shard!r}: say 'raise' or 'skip'")
        self.url = store.url
        self.manifest = manifest
        self._on_bad_shard = on_bad_shard
        self._skipped: dict[int, Fault] = {}
        # A flag per shard, which the workers of a DataLoader set where they skip one.
        self._skipped_anywhere: torch.Tensor | None = None
        self._store = store
        self._verify = verify
        self._format = manifest.plan.open_format()
        self._renew()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_open", "_opening", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._renew()

    def _renew(self) -> None:
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()  # around the two

    @property
    def plan(self) -> Plan:
        """What the dataset was made by."""
        return self.manifest.plan

    @property
    def leaves_out(self) -> bool:
        """Whether passes leave bad shards out."""
        return self._on_bad_shard == "skip"

    @property
    def skipped(self) -> list[Fault]:
        """The shards that were left out, with ``on_bad_shard="skip"``, each once and also logged as a warning.

        First those that this process met, in that order, then those that workers of a torch DataLoader over `to_torch` met, as
        soon as they do. Processes of any other kind (ranks, Ray's tasks) have lists of their own.
        """
        found = list(self._skipped.values())
        if self._skipped_anywhere is not None:
            others = [index for (index,) in self._skipped_anywhere.nonzero().tolist() if index not in self._skipped]
            found += [
                Fault(self.manifest.shards[index].key, "was left out by a DataLoader's worker, whose warning says why")
                for index in others
            ]
        return found

    def __repr__(self) -> str:
        return (
            f"<Dataset {self.url}: {len(self)} samples, {self.schema.describe()}, {len(self.manifest.shards)} shards>"
        )

    def to_arrow(self) -> Any:
        """A `pyarrow.dataset.Dataset` of the stored columns, over the manifest's shards and no others.

        It reads by byte range. It compares the checksum of each page that it reads, and no digests of shards: a damaged page is
        pyarrow's OSError, raised where the data is read. Its ``files`` and ``filesystem`` are what other readers of Parquet
        take, which compare what they choose to: ``ray.data.read_parquet(arrow.files, filesystem=arrow.filesystem)``.

        Raises:
            UsageError: the shards are of a format that Arrow cannot read.
        """
        from genworker.reading.arrow import arrow_dataset

        return arrow_dataset(self._store, self.manifest)

    def to_torch(self, *, rank: int = 0, world_size: int = 1) -> TorchStream:
        """As for all samples; shards that a DataLoader's workers skip are in `skipped` of this process too."""
        if self._on_bad_shard == "skip":
            import torch

            if self._skipped_anywhere is None:
                self._skipped_anywhere = torch.zeros(len(self.manifest.shards), dtype=torch.bool)
            # Here, because forked workers share only what was shared before; torch hands it to spawned ones.
            self._skipped_anywhere.share_memory_()  # type: ignore[no-untyped-call]
        return super().to_torch(rank=rank, world_size=world_size)

    def _rows(self, shard_index: int, first: int, stop: int) -> Iterator[SampleBatch]:
        """Yield rows [first, stop) of a shard."""
        try:
            # Not kept open: a pass over everything would only push out what random access has open.
            reader = self._open.get(shard_index) or self._open_shard(shard_index)
        except DatasetError as err:
            self._skip(shard_index, err)
            return
        key = self.manifest.shards[shard_index].key
        batches, given = iter(reader.batches(first)), 0
        while first < stop:
            # Not around the yield: what the caller raises there is none of the shard's doing.
            try:
                with naming(self._store, key):
                    batch = next(batches, None)
            except DatasetError as err:
                self._skip(shard_index, err, given)
                return
            if batch is None:
                return
            batch = batch.part(0, stop - first)
            first, given = first + len(batch), given + len(batch)
            yield batch

    def _one(self, index: int) -> Sample:
        """The first sample of a shard costs the transfer of the shard; the last few shards stay open."""
        task = self.plan.task(self.plan.shard_of(index))
        reader = self._reader(task.shard_index)
        with naming(self._store, task.key):
            return sample_of(reader.read_row(index - task.first_index), 0)

    def _skip(self, shard_index: int, err: DatasetError, given: int = 0) -> None:
        """Note a bad shard, of which so many samples were given before, and go on, or raise."""
        if self._on_bad_shard == "raise":
            raise err
        if shard_index in self._skipped:
            return
        key = self.manifest.shards[shard_index].key
        problem = str(err).removeprefix(f"{self.url}/{key}: ")
        if given:
            problem += f" ({given} samples before it were good, and were given)"
        fault = self._skipped[shard_index] = Fault(key, problem)
        if self._skipped_anywhere is not None:
            self._skipped_anywhere[shard_index] = True
        _log.warning("%s: shard skipped: %s", self.url, fault)

    def _reader(self, shard_index: int) -> ShardReader:
        with self._lock:
            if (kept := self._kept(shard_index)) is not None:
                return kept
            opening = self._opening.setdefault(shard_index, threading.Lock())
        with opening:  # who comes for the same shard meanwhile waits for it, who comes for another does not
            with self._lock:
                if (kept := self._kept(shard_index)) is not None:
                    return kept
            try:
                reader = self._open_shard(shard_index)
                with self._lock:
                    self._open[shard_index] = reader
                    if len(self._open) > _MAX_OPEN_SHARDS:
                        self._open.popitem(last=False)
            finally:
                with self._lock:
                    self._opening.pop(shard_index, None)
        return reader

    def _kept(self, shard_index: int) -> ShardReader | None:
        if shard_index in self._open:
            self._open.move_to_end(shard_index)
        return self._open.get(shard_index)

    def _open_shard(self, shard_index: int) -> ShardReader:
        return open_shard(self._store, self.manifest, shard_index, self._format, verify=self._verify)


def open_dataset(url: str, *, verify: bool = True, on_bad_shard: OnBadShard = "raise") -> Dataset:
    """Open a finished dataset.

    Args:
        url: where `genworker generate` wrote it.
        verify: compare each shard's SHA-256 with the manifest whenever the shard is fetched.
        on_bad_shard: what passes over the data do with a shard that is missing, damaged or not the manifest's: ``raise``
            a DatasetError, or ``skip`` it, name it in `Dataset.skipped`, and go on; what a shard gave before it turned out
            bad, as it can where each image is a file, was good. One sample by index always raises, and so does a store that
            fails.

    Raises:
        DatasetError: there is none, it is unfinished, or its manifest is damaged.
        StoreError: the store failed.
        UsageError: the URL is of no known scheme, or ``on_bad_shard`` is another word.
    """
    store = open_store(url)
    return Dataset(store, read_manifest(store), verify=verify, on_bad_shard=on_bad_shard)
