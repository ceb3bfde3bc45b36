"""The driver of a bulk job: claims the plan, runs the pool, publishes.

In: what the user asked for. Out: a published manifest. It holds a bounded window of tasks and a receipt per shard, never an
image. It may die at any point: the next run of the same request lists what is there and makes only what is missing.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray
import torch

from genworker import bundle as bundles
from genworker import cluster
from genworker.bulk import commit
from genworker.bulk.plan import Plan, Task
from genworker.bulk.pool import ShardPool
from genworker.bulk.protocol import Driver
from genworker.bulk.records import Manifest, Receipt
from genworker.bulk.request import GenerateSpec, calibrated, check_same, make_plan, numerics_for, sample_schema
from genworker.bulk.shard import ShardMaker
from genworker.bundle import Bundle
from genworker.device import pick_device
from genworker.errors import UsageError
from genworker.sampling.calibration import Calibration
from genworker.stores import open_store

# Of one actor at a time. One computes while another is on its way to the store; beside a GPU a third is being encoded.
_TASKS_ON_CPU, _TASKS_ON_GPU = 2, 3


@dataclass(frozen=True)
class Progress:
    """How far a job is. ``event`` is a line about something that went wrong and was dealt with, or empty."""

    num_shards: int
    num_done: int
    samples_done: int
    bytes_done: int
    samples_made: int
    making_seconds: float
    event: str = ""


@dataclass(frozen=True)
class JobResult:
    """What a finished job leaves.

    ``samples_made`` counts this run's part of the dataset, ``making_seconds`` the time from the first task to the manifest.
    """

    manifest: Manifest
    samples_made: int
    making_seconds: float


class ShardActor:
    """What runs in each Ray actor; a plain class, so that it is tested without Ray. Its methods run in several threads."""

    def __init__(self, out: str, *, use_gpu: bool, num_cpus: int = 1) -> None:
        self._store = open_store(out)
        self._device = pick_device(use_gpu=use_gpu)
        self._num_cpus = num_cpus
        self._maker: ShardMaker | None = None
        self._setting_up = threading.Lock()

    def calibrate(self, spec: GenerateSpec, bundle: Bundle, num_actors: int) -> Calibration:
        """The numerics of this actor's kind of machine, for a new plan."""
        return calibrated(spec, bundle, self._device, num_actors)

    def make(self, task: Task, attempt: int) -> Receipt:
        """Make and commit one shard."""
        with self._setting_up:
            if self._maker is None:
                self._maker = ShardMaker(self._store, self._device, self._num_cpus)
        return self._maker.make(task, attempt)


def generate(spec: GenerateSpec, on_progress: Callable[[Progress], None] = lambda _progress: None) -> JobResult:
    """Make the dataset that ``spec`` describes, or what is missing of it, and publish it.

    Raises:
        UsageError, BundleError, PlanError: the request cannot be carried out; nothing was written.
        ClusterError: the cluster has fewer resources than asked for.
        JobError, StoreError, DeterminismError: the job stopped; run it again to go on.
    """
    if spec.out.startswith("memory://"):
        raise UsageError(f"out {spec.out}: memory:// lives in one process and actors are others; use a folder or s3://")
    store = open_store(spec.out)
    bundle = bundles.load(open_store(spec.bundle), with_scorer="score" in (spec.columns or ()))
    schema = sample_schema(bundle.info)
    plan = commit.read_plan(store)
    if plan is not None:
        check_same(spec, bundle.info, plan)
        if (manifest := commit.published(store)) is not None:
            return JobResult(manifest, 0, 0.0)
    # All but the numerics, which only an actor's machine knows: everything is checked before an actor starts.
    draft = plan or make_plan(spec, bundle.info, numerics_for(spec, schema, torch.device("cpu")))
    with cluster.connect():
        options = cluster.actor_options(use_gpu=spec.use_gpu, num_cpus=spec.cpus_per_actor)
        num_actors = cluster.check_actors(spec.actors, options, draft.num_shards)
        tasks_at_once = _TASKS_ON_GPU if spec.use_gpu else _TASKS_ON_CPU
        remote = ray.remote(ShardActor).options(**options, max_concurrency=tasks_at_once)
        reporter = _Reporter(on_progress)
        pool = ShardPool(
            # The URL is absolute, because actors have other working directories.
            lambda: remote.remote(store.url, use_gpu=spec.use_gpu, num_cpus=spec.cpus_per_actor),
            num_actors,
            depth=tasks_at_once,
            max_attempts=spec.max_attempts,
            on_event=reporter.event,
        )
        try:
            if plan is None:
                # Where the store cannot decide between two drivers, both have to choose the same without measuring.
                measured = spec.model_copy(update={"calibrate": spec.calibrate and store.conditional})
                calibration = pool.ask("calibrate", measured, bundle, num_actors)
                plan = commit.agree(store, make_plan(spec, bundle.info, calibration.numerics))
                check_same(spec, bundle.info, plan)
                if calibration.trials and plan.numerics == calibration.numerics:
                    commit.keep_calibration(store, calibration)
            begin = functools.partial(reporter.begin, plan)
            driver = Driver(store, plan, bundle, pool.run, on_recalled=begin, on_made=reporter.made)
            return JobResult(driver.run(), reporter.samples_made, reporter.seconds)
        finally:
            pool.close()


class _Reporter:
    """Turns receipts and events into `Progress`."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._started = time.monotonic()
        self.samples_made = 0
        self._on_progress = on_progress
        self._shards = self._done = self._samples = self._bytes = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def begin(self, plan: Plan, receipts: Mapping[int, Receipt]) -> None:
        self._started = time.monotonic()
        self._shards, self._done = plan.num_shards, len(receipts)
        self._samples = sum(receipt.num_samples for receipt in receipts.values())
        self._bytes = sum(receipt.num_bytes for receipt in receipts.values())
        self.event("")

    def made(self, receipt: Receipt) -> None:
        self.samples_made += receipt.num_samples
        self._done += 1
        self._samples += receipt.num_samples
        self._bytes += receipt.num_bytes
        self.event("")

    def event(self, text: str) -> None:
        self._on_progress(
            Progress(self._shards, self._done, self._samples, self._bytes, self.samples_made, self.seconds, text)
        )
