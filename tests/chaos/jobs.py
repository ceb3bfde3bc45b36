"""A bulk job in one process, without Ray: the real driver, shard maker and stores, with threads for actors.

It runs in a process of its own, so that it can be killed or stopped at any point. What it ends in is left in a file; where
there is none, it was killed or met an error that nobody meant.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genworker import bundle as bundles
from genworker.bulk import commit, removal
from genworker.bulk.attempts import Attempts
from genworker.bulk.manifest import published
from genworker.bulk.plan import Plan
from genworker.bulk.protocol import Driver
from genworker.bulk.request import GenerateSpec, check_same, make_plan, numerics_for, sample_schema
from genworker.bulk.shard import ShardMaker
from genworker.bulk.speculation import Stragglers
from genworker.bulk.tally import Tally
from genworker.errors import GenworkerError
from genworker.stores import open_store, s3_client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from genworker.bulk.attempts import Attempt
    from genworker.bulk.plan import Task
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
    if commit.read_plan(store) is not None and published(store) is not None:
        return
    Driver(store, plan, bundles.load(open_store(bundle)), _Threads(out).run, receipts_per_object=2).run()


def trigger(request: Mapping[str, Any], report: str) -> None:
    """What `genworker generate` does with a request, likewise, and leave in a file what it `Counted`."""
    spec = GenerateSpec.parse(dict(request), origin="trigger")
    threads = _Threads(spec.out)
    store = open_store(spec.out)
    removal.check_kept(store)
    bundle = bundles.load(open_store(spec.bundle))
    plan = commit.read_plan(store)
    if plan is None:
        numerics = numerics_for(spec, sample_schema(bundle.info), torch.device("cpu"))
        plan = commit.agree(store, make_plan(spec, bundle.info, numerics))
    check_same(spec, bundle.info, plan)
    if published(store) is None:
        Driver(store, plan, bundle, threads.run).run()
    counted = Counted(len(threads.made), sum(receipt.duplicate for receipt in threads.made))
    Path(report).write_text(json.dumps(asdict(counted)), encoding="utf-8")


def flags_of(request: Mapping[str, Any]) -> list[str]:
    """The same request on the command line of `genworker generate`."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in request.items()]


@dataclass(frozen=True)
class Counted:
    """How often a trigger made a shard, and how many of these were stored already when it had made them."""

    made: int
    wasted: int


class _Threads:
    """Makes shards in threads; what is given out, tried again and tried twice is decided as for actors.

    Attributes:
        made: what each attempt that succeeded came to, also those that nobody waited for.
    """

    def __init__(self, out: str) -> None:
        self.made: list[Receipt] = []
        self._out = out
        self._maker: ShardMaker | None = None

    def run(self, tasks: Iterator[Task]) -> Iterator[Receipt]:
        attempts = Attempts(MAX_ATTEMPTS, lambda _event: None, Tally(), Stragglers(least_seconds=READ_SECONDS / 2))
        attempts.begin(tasks)
        running: dict[Future[Receipt], Attempt] = {}
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(2 * NUM_THREADS)
            stack.callback(pool.shutdown, cancel_futures=True)
            while True:
                while len(running) < 2 * NUM_THREADS:
                    attempt = attempts.next(idle=len(running) < NUM_THREADS)
                    if attempt is None:
                        break
                    running[pool.submit(self._make, attempt)] = attempt
                if attempts.all_done():
                    return
                done, _ = wait(running, timeout=READ_SECONDS / 2, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from self._hear(attempts, running.pop(future), future)

    def _hear(self, attempts: Attempts, attempt: Attempt, future: Future[Receipt]) -> Iterator[Receipt]:
        err = future.exception()
        if err is None:
            receipt = attempts.succeeded(attempt, future.result())
            if receipt is not None:
                yield receipt
        elif isinstance(err, GenworkerError):
            attempts.failed(attempt, err)
        else:  # nothing of ours, so nothing that another attempt should hide
            raise err

    def _make(self, attempt: Attempt) -> Receipt:
        maker = self._maker or ShardMaker(open_store(self._out), torch.device("cpu"))
        self._maker = maker
        receipt = maker.make(attempt.task, attempt.number)
        self.made.append(receipt)
        return receipt
