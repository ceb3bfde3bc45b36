"""What every dataset is to its readers, stored or not: a sequence of samples, read in order, by range or by index.

In: a plan, and a way to get ranges of its samples. Out: `Sample`s, `SampleBatch`es, and the adapters to torch and Ray Data.
"""

from __future__ import annotations

import operator
import os
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from genworker.bulk.plan import Plan
    from genworker.reading.torch_stream import TorchStream
    from genworker.schema import Float32Array, ImageSchema, Pixels, SampleBatch

_here: weakref.WeakSet[Samples] = weakref.WeakSet()  # all of this process


def _renew_all() -> None:
    for samples in list(_here):
        samples._renew()


os.register_at_fork(after_in_child=_renew_all)


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample.

    Attributes:
        index: its position in the dataset.
        pixels: uint8 [H, W, C].
        label: in [0, num_classes), or None where the dataset stores none.
        latents: float32 [latent_dim], or None where the dataset stores none.
        score: the discriminator's, or None where the dataset stores none.
    """

    index: int
    pixels: Pixels
    label: int | None
    latents: Float32Array | None = None
    score: float | None = None


def sample_of(batch: SampleBatch, position: int) -> Sample:
    """The sample at a position of a batch, whose arrays are its own."""
    return Sample(
        index=int(batch.sample_index[position]),
        pixels=batch.pixels[position].copy(),
        label=None if batch.labels is None else int(batch.labels[position]),
        latents=None if batch.latents is None else batch.latents[position].copy(),
        score=None if batch.scores is None else float(batch.scores[position]),
    )


class Samples(ABC):
    """The samples of a plan. It can be pickled, for readers in other processes.

    Attributes:
        url: of what it reads.
    """

    url: str

    def __new__(cls, *_args: object, **_options: object) -> Self:
        """Remember it, for forks of this process."""
        self = super().__new__(cls)
        _here.add(self)
        return self

    def _renew(self) -> None:  # noqa: B027 - not all have locks
        """In a fork: other threads are not there, so what they had locked must not stay so, nor what they were changing."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """What the samples are made by."""

    @abstractmethod
    def _rows(self, shard_index: int, first: int, stop: int) -> Iterator[SampleBatch]:
        """Yield rows [first, stop) of a shard in order."""

    @abstractmethod
    def _one(self, index: int) -> Sample:
        """The sample at ``index``, which is in [0, len)."""

    @property
    def schema(self) -> ImageSchema:
        """The shape of every image, and the classes where there are labels."""
        return self.plan.stored_schema

    @property
    def leaves_out(self) -> bool:
        """Whether a pass may give less than the plan's samples instead of raising."""
        return False

    def __len__(self) -> int:
        return self.plan.num_samples

    def __iter__(self) -> Iterator[Sample]:
        """Yield all samples in order; raises as `batches` does."""
        for batch in self.batches():
            for position in range(len(batch)):
                yield sample_of(batch, position)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Return one sample; negative indices count from the end, and integers of NumPy and torch are as good as Python's.

        Its neighbours come cheap: the last few shards, or micro-batches, stay in memory.

        Raises:
            IndexError: outside [-len, len).
            TypeError: not a whole number.
            DatasetError: its shard is missing, damaged, or differs from the manifest.
        """
        try:
            whole = operator.index(index)
        except TypeError as err:
            raise TypeError(
                f"sample {index!r}: an index is a whole number; `read(first, stop)` gives a range of samples"
            ) from err
        position = whole + len(self) if whole < 0 else whole
        if not 0 <= position < len(self):
            raise IndexError(f"sample {whole}: the dataset has {len(self)}")
        return self._one(position)

    def batches(self, shards: Iterable[int] | None = None) -> Iterator[SampleBatch]:
        """Yield samples in order, in batches of whatever size they come in.

        Args:
            shards: indices of the shards to read, in that order; all by default. For readers that share the work.

        Raises:
            DatasetError: a shard is missing, damaged, or differs from the manifest.
        """
        for shard_index in range(self.plan.num_shards) if shards is None else shards:
            yield from self._rows(shard_index, 0, self.plan.task(shard_index).num_samples)

    def read(self, first: int, stop: int) -> Iterator[SampleBatch]:
        """Yield samples [first, stop) in order, in batches of whatever size they come in.

        Raises:
            IndexError: the range reaches outside [0, len].
            DatasetError: a shard is missing, damaged, or differs from the manifest.
        """
        if not 0 <= first <= stop <= len(self):
            raise IndexError(f"samples [{first}, {stop}): the dataset has {len(self)}")
        while first < stop:
            task = self.plan.task(self.plan.shard_of(first))
            end = min(stop, task.first_index + task.num_samples)
            yield from self._rows(task.shard_index, first - task.first_index, end - task.first_index)
            first = end

    def to_torch(self, *, rank: int = 0, world_size: int = 1) -> TorchStream:
        """A torch `IterableDataset` of the samples of one rank; see `genworker.reading.torch_stream.TorchStream`.

        Raises:
            UsageError: ``rank`` is not in [0, world_size).
        """
        from genworker.reading.torch_stream import TorchStream

        return TorchStream(self, rank=rank, world_size=world_size)

    def to_ray(self, **options: Any) -> Any:
        """A `ray.data.Dataset` with a row per sample: sample_index, pixels (uint8 [H, W, C]), and the other columns.

        Ray's tasks read whole shards, each once, with the same checks as here. ``options`` are those of
        `ray.data.read_datasource`, such as ``override_num_blocks``.
        """
        from genworker.reading.ray_data import to_ray

        return to_ray(self, **options)
