"""A dataset that nobody stores: a bundle and a plan, evaluated as they are read.

In: a bundle, a plan. Out: the samples that `generate` would store for that plan, lossy codecs included, through the same
interface as a stored dataset's. It writes nothing.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genworker import codecs
from genworker.device import pick_device
from genworker.errors import UsageError
from genworker.reading.samples import Sample, Samples, sample_of
from genworker.sampling.columns import StoredColumns
from genworker.sampling.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.bulk.plan import Plan
    from genworker.bundle import Bundle
    from genworker.schema import SampleBatch

# Random access jumps between neighbours; a micro-batch is evaluated whole for any one of its samples.
_MAX_KEPT = 8


class VirtualDataset(Samples):
    """The samples of a plan, made when they are asked for; see `genworker.reading.samples.Samples`.

    Args:
        bundle: that the plan was made for, with its scorer where the plan has scores.
        plan: what to evaluate.
        url: of the bundle, for messages.
        use_gpu: evaluate on the GPU.

    Raises:
        BundleError: the bundle is not the plan's.
        DeterminismError: the plan was made for another kind of machine, whose samples this one cannot make.

    A plan that evaluates with several threads cannot be read in a forked process, such as a torch DataLoader's workers on
    Linux: that raises UsageError where samples are asked for. ``DataLoader(multiprocessing_context="spawn")`` can.
    """

    def __init__(self, bundle: Bundle, plan: Plan, *, url: str, use_gpu: bool = False) -> None:
        self.url = url
        self._bundle = bundle
        self._plan = plan
        self._use_gpu = use_gpu
        codec = codecs.make(plan.codec, plan.image_schema)
        self._codec = None if codec.lossless else codec
        self._maker: tuple[Engine, StoredColumns] | None = None
        self._process = os.getpid()
        self._renew()
        self._make()

    def _renew(self) -> None:
        self._kept: OrderedDict[int, SampleBatch] = OrderedDict()
        self._lock = threading.RLock()  # an engine is for one thread at a time

    @property
    def plan(self) -> Plan:
        """What the samples are made by."""
        return self._plan

    def __repr__(self) -> str:
        return f"<VirtualDataset of {self.url}: {len(self)} samples, {self.schema.describe()}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maker": None, "_kept": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_process": os.getpid()}
        self._renew()

    def _make(self) -> tuple[Engine, StoredColumns]:
        if self._maker is None:
            device = pick_device(use_gpu=self._use_gpu)
            self._maker = Engine(self._bundle, self._plan, device), StoredColumns(self._bundle, self._plan, device)
        return self._maker

    def _rows(self, shard_index: int, first: int, stop: int) -> Iterator[SampleBatch]:
        before = self._plan.task(shard_index).first_index
        return self._samples(before + first, stop - first)

    def _samples(self, first: int, count: int) -> Iterator[SampleBatch]:
        if self._process != os.getpid():
            self._check_fork()
        made: Iterator[SampleBatch] | None = None
        while True:
            with self._lock:
                engine, columns = self._make()
                made = made or engine.batches(first, count)
                batch = next(made, None)
                if batch is None:
                    return
                batch = columns.complete(batch)
            yield self._as_stored(batch)

    def _check_fork(self) -> None:
        """Raise UsageError where a fork of the process that opened the dataset cannot make its samples."""
        if self._use_gpu:  # CUDA does not survive a fork
            raise UsageError(
                f"{self.url}: is evaluated on a GPU, which a forked process cannot use; give torch's DataLoader "
                'multiprocessing_context="spawn", or open it without use_gpu where its plan is for a CPU'
            )
        if self._plan.numerics.threads > 1:
            # OpenMP's threads do not survive a fork, and whoever asks for them waits for good.
            raise UsageError(
                f"{self.url}: its plan evaluates with {self._plan.numerics.threads} threads, which a forked process cannot "
                'start; give torch\'s DataLoader multiprocessing_context="spawn", or make the plan with cpus_per_actor 1'
            )

    def _one(self, index: int) -> Sample:
        size = self._plan.numerics.micro_batch
        block = index // size
        with self._lock:
            if block in self._kept:
                self._kept.move_to_end(block)
            else:
                first = block * size
                (self._kept[block],) = self._samples(first, min(size, len(self) - first))
                if len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
            return sample_of(self._kept[block], index - block * size)

    def _as_stored(self, batch: SampleBatch) -> SampleBatch:
        if self._codec is None:
            return batch
        return replace(
            batch, pixels=np.stack([self._codec.decode(self._codec.encode(image)) for image in batch.pixels])
        )
