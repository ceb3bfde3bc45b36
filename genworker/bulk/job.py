"""The driver of a bulk job: claims the plan, runs the pool, publishes.

In: what the user asked for. Out: a published manifest. It holds a bounded window of tasks and some bytes per shard, never an
image. It may die at any point: the next run of the same request lists what is there and makes only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch

from genworker import bundle as bundles
from genworker import cluster
from genworker.bulk import actor, commit, removal, summary, vacancy
from genworker.bulk.capacity import Capacity
from genworker.bulk.manifest import published
from genworker.bulk.metrics import Meters
from genworker.bulk.plan import Task
from genworker.bulk.pool import Drained, ShardPool
from genworker.bulk.progress import Price, Progress, Reporter
from genworker.bulk.protocol import Driver
from genworker.bulk.records import Manifest, Receipt
from genworker.bulk.request import (
    GenerateSpec,
    check_reachable,
    check_same,
    make_plan,
    numerics_for,
    sample_schema,
)
from genworker.bulk.tally import Tally
from genworker.sampling.calibration import Calibration
from genworker.sampling.grid import wasteful_size
from genworker.stores import open_store

# The rate of the first shards of each actor holds their start; from the second ones on it tells something.
_ESTIMATE_SHARDS_PER_ACTOR = 3
_SECONDS_BETWEEN_MESSAGES = 10.0


@dataclass(frozen=True)
class JobResult:
    """What a finished job leaves.

    ``samples_made`` counts this run's part of the dataset, ``making_seconds`` the time from the first task to the manifest.
    ``summary`` is what `genworker.bulk.summary.summarise` says of this run.
    """

    manifest: Manifest
    samples_made: int
    making_seconds: float
    summary: Mapping[str, Any]


def generate(spec: GenerateSpec, on_progress: Callable[[Progress], None] = lambda _progress: None) -> JobResult:
    """Make the dataset that ``spec`` describes, or what is missing of it, and publish it.

    SIGTERM and SIGINT end it after `GenerateSpec.drain_timeout` at most, then act as they would without it; so does a second
    one at once.

    Raises:
        UsageError, BundleError, PlanError: the request cannot be carried out; nothing was written.
        ClusterError: the cluster has fewer resources than asked for.
        JobError, StoreError, DeterminismError: the job stopped; run it again to go on.
    """
    check_reachable(spec)
    store = open_store(spec.out)
    removal.check_kept(store)
    bundle = bundles.load(open_store(spec.bundle), with_scorer="score" in (spec.columns or ()))
    schema = sample_schema(bundle.info)
    plan = commit.read_plan(store)
    if plan is not None:
        check_same(spec, bundle.info, plan)
        if (manifest := published(store)) is not None:
            return _nothing_to_do(spec, manifest)
    bundle.check()
    # All but the numerics, which only an actor's machine knows: everything is checked before an actor starts.
    draft = plan or make_plan(spec, bundle.info, numerics_for(spec, schema, torch.device("cpu")))
    with cluster.connect() as can_grow:
        run = _Run(spec, on_progress, can_grow=can_grow)
        pool = run.pool(actor.starter(spec, run.places, store.url, ray.put(bundle)))
        try:
            if plan is None:
                # Where the store cannot decide between two drivers, both have to choose the same without measuring.
                measured = spec.model_copy(update={"calibrate": spec.calibrate and store.conditional})
                calibration = pool.ask(
                    "calibrate", measured, run.capacity.wanted(draft.num_shards), num_tasks=draft.num_shards
                )
                wanted = make_plan(spec, bundle.info, calibration.numerics)
                vacancy.check_vacant(store, wanted)
                plan = commit.agree(store, wanted)
                check_same(spec, bundle.info, plan)
                if plan.numerics == calibration.numerics:
                    run.foresee(calibration, run.capacity.wanted(plan.num_shards))
                    if calibration.trials:
                        commit.keep_calibration(store, calibration)
                if waste := wasteful_size(plan):
                    run.reporter.event(waste)
            driver = Driver(
                store,
                plan,
                bundle,
                lambda tasks: run.make(pool, tasks),
                on_recalled=functools.partial(run.reporter.begin, plan),
                on_adopted=run.adopted,
                on_made=run.made,
                end_makers=pool.close,
            )
            with _draining(pool):
                manifest = driver.run()
        finally:
            pool.close()
    return JobResult(manifest, run.reporter.samples_made, run.reporter.seconds, run.summary())


def _nothing_to_do(spec: GenerateSpec, manifest: Manifest) -> JobResult:
    num_shards = len(manifest.shards)
    done = Progress(
        num_shards,
        num_shards,
        manifest.num_samples,
        manifest.num_bytes,
        0,
        0.0,
        "",
        manifest.plan_id,
        manifest.num_samples,
    )
    return JobResult(manifest, 0, 0.0, summary.summarise(spec, done, Tally(), None))


class _Run:
    """What one run counts and tells."""

    def __init__(self, spec: GenerateSpec, on_progress: Callable[[Progress], None], *, can_grow: bool) -> None:
        self._spec = spec
        self.tally = Tally(Meters("driver"))
        self.reporter = Reporter(on_progress)
        self._told_at = time.monotonic()
        self._forecast: dict[str, Any] | None = None
        self._estimate: dict[str, Any] | None = None
        self.places = actor.Places(spec)
        self.capacity = Capacity(
            fewest=spec.fewest_actors,
            most=spec.most_actors,
            room=self.places.room,
            describe=self.places.describe,
            wait_seconds=spec.wait_timeout if can_grow else 0.0,
        )

    def pool(self, start_actor: Callable[[], Any]) -> ShardPool:
        return ShardPool(
            start_actor,
            self.capacity,
            depth=actor.tasks_at_once(self._spec),
            max_attempts=self._spec.max_attempts,
            on_event=self.reporter.event,
            on_tick=self.reporter.tick,
            on_refused=self.places.leave_out,
            tally=self.tally,
            drain_seconds=self._spec.drain_timeout,
        )

    def make(self, pool: ShardPool, tasks: Iterator[Task]) -> Iterator[Receipt]:
        progress = self.reporter.progress
        return pool.run(tasks, progress.num_shards - progress.num_done)

    def foresee(self, calibration: Calibration, num_actors: int) -> None:
        self._forecast = summary.forecast(self._spec, calibration, num_actors)
        self._tell_price(self._forecast)

    def adopted(self, done: int, total: int) -> None:
        """Tell now and then how far it is with shards that a killed driver left without receipts."""
        if (now := time.monotonic()) - self._told_at >= _SECONDS_BETWEEN_MESSAGES:
            self._told_at = now
            self.reporter.event(f"{done} of {total} stored shards that no receipt names are checked")

    def made(self, receipt: Receipt) -> None:
        self.reporter.made(receipt)
        enough = _ESTIMATE_SHARDS_PER_ACTOR * max(1, self.tally.peak_actors)
        if self._estimate is None and self.reporter.shards_made >= enough:
            self._estimate = summary.estimate(self._spec, self.reporter.progress, self.tally.peak_actors)
            if self._estimate is not None:
                self._tell_price(self._estimate)

    def summary(self) -> dict[str, Any]:
        return summary.summarise(self._spec, self.reporter.progress, self.tally, self._estimate, self._forecast)

    def _tell_price(self, expected: dict[str, Any]) -> None:
        if self._spec.price_per_hour is not None:
            self.reporter.event(Price(summary.sentence(expected, self._spec.num_samples)))


@contextlib.contextmanager
def _draining(pool: ShardPool) -> Iterator[None]:
    """Inside the block, the first SIGTERM or SIGINT stops the pool gently; what it meant before happens afterwards.

    One that is ignored stays so: shells start what runs in the background without SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        restore()
        pool.stop()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except Drained:
        signal.raise_signal(received[0])
        raise
    finally:
        restore()
