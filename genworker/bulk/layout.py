"""Which objects below data/ belong to which shard of a plan.

A shard is one object under its key, or, in formats of many files, a table under its key and a file per sample beside it: the
files are stored first, the table last, so that a shard is there when its key is. In: a plan, and keys as a store lists them.
Out: owners and totals. It reads no object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from genworker.bulk.plan import Plan, Task
from genworker.errors import DatasetError, ObjectMissingError
from genworker.formats.base import Get
from genworker.stores.base import ObjectInfo, Store


class Stored:
    """What is there of each shard, as columns, because there may be a million.

    Attributes:
        num_objects: int64 [num_shards].
        num_bytes: int64 [num_shards].
        complete: bool [num_shards]; whether the object under the shard's key is there.
    """

    def __init__(self, num_shards: int) -> None:
        self.num_objects = np.zeros(num_shards, np.int64)
        self.num_bytes = np.zeros(num_shards, np.int64)
        self.complete = np.zeros(num_shards, np.bool_)


class Layout:
    """The objects of a plan's shards."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._format = plan.open_format()

    def owner(self, key: str) -> int | None:
        """The shard that an object belongs to, or None for a stranger."""
        index = self._plan.shard_index_of(key)
        if index is not None:
            return index
        folder, _, name = key.rpartition("/")
        number = re.match("[0-9]{1,18}", name)
        if number is None or self._format.beside_name(int(number[0])) != name:
            return None
        sample = int(number[0])
        if sample >= self._plan.num_samples:
            return None
        index = self._plan.shard_of(sample)
        return index if folder == folder_of(self._plan.shard_key(index)) else None

    def num_objects(self, task: Task) -> int:
        """How many objects a whole shard has."""
        return 1 if self._format.beside_name(task.first_index) is None else 1 + task.num_samples

    def beside(self, task: Task) -> Iterator[str]:
        """Keys of the objects beside the one under the shard's key."""
        for sample in range(task.first_index, task.first_index + task.num_samples):
            name = self._format.beside_name(sample)
            if name is not None:
                yield beside_key(task.key, name)

    def whole(self) -> npt.NDArray[np.int64]:
        """How many objects each shard has when all are there, int64 [num_shards]."""
        plan = self._plan
        if self._format.beside_name(0) is None:
            return np.ones(plan.num_shards, np.int64)
        counts = np.full(plan.num_shards, 1 + plan.samples_per_shard, np.int64)
        counts[-1] = self.num_objects(plan.task(plan.num_shards - 1))
        return counts

    def survey(self, infos: Iterable[ObjectInfo]) -> tuple[Stored, list[ObjectInfo]]:
        """What is there of each shard, and the strangers."""
        found = Stored(self._plan.num_shards)
        strangers: list[ObjectInfo] = []
        for info in infos:
            index = self._plan.shard_index_of(info.key)
            if index is not None:
                found.complete[index] = True
            else:
                index = self.owner(info.key)
            if index is None:
                strangers.append(info)
                continue
            found.num_objects[index] += 1
            found.num_bytes[index] += info.size
        return found, strangers


def folder_of(key: str) -> str:
    """The folder that an object lies in."""
    return key.rpartition("/")[0]


def beside_key(shard_key: str, name: str) -> str:
    """The key of an object beside the one under the shard's key."""
    return f"{folder_of(shard_key)}/{name}"


def getter(store: Store, shard_key: str) -> Get:
    """What a format's reader fetches the objects beside a shard's table with; a missing one is a DatasetError."""

    def get(name: str) -> bytes:
        try:
            return store.get(beside_key(shard_key, name))
        except ObjectMissingError as err:
            raise DatasetError(f"{name} is missing, though the shard's table names it") from err

    return get
