"""A bulk job in one process, without Ray: the real driver, shard maker and stores, with threads for actors.

It runs in a process of its own, so that it can be killed or stopped at any point. What it ends in is left in a file; where
there is none, it was killed or met an error that nobody meant.
"""

from __future__ import annotations

import json
import os
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from genworker import bundle as bundles
from genworker.bulk import commit
from genworker.bulk.plan import Plan, Task
from genworker.bulk.pool import _HOPELESS
from genworker.bulk.protocol import Driver
from genworker.bulk.shard import ShardMaker
from genworker.errors import GenworkerError, JobError
from genworker.stores import open_store, s3_client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from genworker.bulk.records import Receipt

NUM_THREADS = 2
MAX_ATTEMPTS = 3
# Faults that keep a client waiting are what most rounds would spend their time on.
READ_SECONDS = 1.0


@dataclass(frozen=True)
class Ending:
    """How a job ended: ``error`` is empty where it published; otherwise the error's class, and what it said."""

    error: str = ""
    message: str = ""
    is_ours: bool = True


def run(out: str, bundle: str, plan_text: str, environment: Mapping[str, str], report: str) -> None:
    """Carry out a plan, from whatever is there, and report how it ended."""
    os.environ.update(environment)
    s3_client.READ_SECONDS = READ_SECONDS  # type: ignore[assignment]
    try:
        publish(out, bundle, Plan.model_validate_json(plan_text))
        ending = Ending()
    except GenworkerError as err:
        ending = Ending(type(err).__name__, str(err))
    except Exception as err:
        ending = Ending(type(err).__name__, traceback.format_exc(), is_ours=False)
    path = Path(report)
    path.with_suffix(".new").write_text(json.dumps(asdict(ending)), encoding="utf-8")
    path.with_suffix(".new").rename(path)


def publish(out: str, bundle: str, plan: Plan) -> None:
    """What `genworker.bulk.job.generate` does, with threads in place of actors."""
    store = open_store(out)
    if commit.read_plan(store) is not None and commit.published(store) is not None:
        return
    Driver(store, plan, bundles.load(open_store(bundle)), _Threads(out).run, receipts_per_object=2).run()


class _Threads:
    """Makes shards in threads, each task up to three times, as the pool of actors does."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._maker: ShardMaker | None = None

    def run(self, tasks: Iterator[Task]) -> Iterator[Receipt]:
        pool = ThreadPoolExecutor(NUM_THREADS)
        running: dict[Future[Receipt], tuple[Task, int]] = {}
        try:
            for task in tasks:
                running[pool.submit(self._make, task, 0)] = task, 0
                while len(running) >= 2 * NUM_THREADS:
                    yield from self._collect(pool, running)
            while running:
                yield from self._collect(pool, running)
        finally:
            pool.shutdown(cancel_futures=True)

    def _collect(self, pool: ThreadPoolExecutor, running: dict[Future[Receipt], tuple[Task, int]]) -> Iterator[Receipt]:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task, attempt = running.pop(future)
            try:
                yield future.result()
            except GenworkerError as err:
                if isinstance(err, _HOPELESS):
                    raise
                if attempt + 1 == MAX_ATTEMPTS:
                    raise JobError(f"{task.key}: failed {MAX_ATTEMPTS} times, the last time with: {err}") from err
                running[pool.submit(self._make, task, attempt + 1)] = task, attempt + 1

    def _make(self, task: Task, attempt: int) -> Receipt:
        maker = self._maker or ShardMaker(open_store(self._out), torch.device("cpu"))
        self._maker = maker
        return maker.make(task, attempt)
