"""What runs in each Ray actor: one set-up, then task after task, several at once in threads.

In: tasks. Out: receipts. The bundle comes through Ray's object store, which holds it once per node however many actors the
node has; no image ever goes there.
"""

from __future__ import annotations

import contextlib
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from genworker import cluster
from genworker.bulk.request import GenerateSpec
from genworker.bulk.shard import ShardMaker
from genworker.bulk.trials import calibrated
from genworker.device import gpu_failure, pick_device
from genworker.errors import DeviceError, OtherMachineError, UsageError
from genworker.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import torch

    from genworker.bulk.plan import Task
    from genworker.bulk.records import Receipt
    from genworker.bundle import Bundle
    from genworker.sampling.calibration import Calibration

# One computes while another is on its way to the store; beside a GPU a third is being encoded.
_TASKS_ON_CPU, _TASKS_ON_GPU = 2, 3


class ShardActor:
    """A plain class, so that it is tested without Ray. Its methods run in several threads.

    With ``gpu_share`` below 1 it takes no more of its GPU's memory, which others use too: also where it calibrates alone, so
    that a micro-batch is not chosen for which there is no room beside them.
    """

    def __init__(self, out: str, bundle: Bundle, *, use_gpu: bool, num_cpus: int = 1, gpu_share: float = 1.0) -> None:
        self._store = open_store(out)
        self._bundle: Bundle | None = bundle
        self._use_gpu, self._gpu_share = use_gpu, gpu_share
        self._num_cpus = num_cpus
        self._maker: ShardMaker | None = None
        self._setting_up = threading.Lock()

    @cached_property
    def _device(self) -> torch.device:
        try:
            return pick_device(use_gpu=self._use_gpu, share=self._gpu_share)
        except UsageError as err:  # not the request is wrong, but this machine for it
            raise OtherMachineError(str(err)) from err

    def calibrate(self, spec: GenerateSpec, num_actors: int) -> Calibration:
        """The numerics of this actor's kind of machine, for a new plan."""
        assert self._bundle is not None, "calibrates before it makes shards"
        with self._failures_told():
            return calibrated(spec, self._bundle, self._device, num_actors)

    def make(self, task: Task, attempt: int) -> Receipt:
        """Make and commit one shard."""
        with self._failures_told():
            with self._setting_up:
                if self._maker is None:
                    self._maker = ShardMaker(self._store, self._device, self._num_cpus, self._bundle)
                    self._bundle = None  # its networks are built
            return self._maker.make(task, attempt)

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Raise DeviceError for what this process will not get over, so that another one takes its place."""
        try:
            yield
        except RuntimeError as err:
            if self._use_gpu and (problem := gpu_failure(err)) is not None:
                raise DeviceError(problem) from err
            raise


def tasks_at_once(spec: GenerateSpec) -> int:
    """How many tasks an actor has in its threads."""
    return _TASKS_ON_GPU if spec.use_gpu else _TASKS_ON_CPU


class Places:
    """What each actor of a job needs, and where the cluster has that: on any node that was not left out."""

    def __init__(self, spec: GenerateSpec) -> None:
        self._spec = spec
        self._left_out: set[str] = set()

    def leave_out(self, node: str) -> None:
        """Start no more actors on the node of this id."""
        self._left_out.add(node)

    def options(self) -> dict[str, Any]:
        """Ray options of the next actor."""
        return _options(self._spec, self._left_out)

    def room(self) -> int:
        """How many actors the cluster could hold now."""
        return cluster.room(_options(self._spec), self._left_out)

    def describe(self) -> str:
        """What an actor needs and what the cluster has, for messages."""
        return cluster.describe(_options(self._spec), self._left_out)


def _options(spec: GenerateSpec, not_on: Collection[str] = ()) -> dict[str, Any]:
    return cluster.actor_options(
        num_cpus=spec.cpus_per_actor,
        num_gpus=spec.gpus_per_actor if spec.use_gpu else 0,
        node_labels=spec.node_labels,
        not_on=not_on,
    )


def starter(spec: GenerateSpec, places: Places, url: str, bundle: ray.ObjectRef) -> Callable[[], Any]:
    """A function that starts one actor. ``url`` is absolute, because actors have other working directories."""
    remote = ray.remote(ShardActor)

    def start() -> Any:
        options = remote.options(**places.options(), max_concurrency=tasks_at_once(spec))
        return options.remote(
            url, bundle, use_gpu=spec.use_gpu, num_cpus=spec.cpus_per_actor, gpu_share=spec.gpus_per_actor
        )

    return start
