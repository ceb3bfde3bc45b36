"""What it buys to make one shard while another is stored: `python -m tests.benchmarks.generate.uploads`.

One process of one thread, a store whose puts take as long as they are told to, and as many tasks at a time as said.
"""

from __future__ import annotations

import argparse
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from genworker import bundle as bundles
from genworker.bulk import commit
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.bulk.shard import ShardMaker
from genworker.bulk.stages import StageSeconds
from genworker.stores import open_store
from tests.benchmarks.generate.models import MODELS, save_bundle


def run(shards: int, per_shard: int, put_seconds: float, tasks_at_once: int) -> tuple[float, StageSeconds]:
    """Seconds for all shards, and where they went."""
    url = f"memory://{uuid.uuid4().hex}"
    family, schema, _ = MODELS["28x28x1"]
    save_bundle(f"{url}-bundle", family, schema)
    bundle = bundles.load(open_store(f"{url}-bundle"))
    spec = GenerateSpec(bundle="-", out=url, num_samples=shards * per_shard, samples_per_shard=per_shard)
    cpu = torch.device("cpu")
    plan = make_plan(spec, bundle.info, numerics_for(spec, sample_schema(bundle.info), cpu))
    store = open_store(url)
    commit.claim(store, plan)
    commit.store_bundle(store, bundle)
    put = store.put

    def slow_put(*values: Any, **flags: Any) -> Any:
        time.sleep(put_seconds)
        return put(*values, **flags)

    store.put = slow_put  # type: ignore[method-assign]
    maker = ShardMaker(store, cpu)
    for _ in maker._work.run(plan.task(0), StageSeconds()):  # the first evaluation allocates
        break
    total = StageSeconds()
    started = time.perf_counter()
    with ThreadPoolExecutor(tasks_at_once) as threads:
        for receipt in threads.map(lambda task: maker.make(task, 0), plan.tasks()):
            assert receipt.stages is not None
            total.add(receipt.stages)
    return time.perf_counter() - started, total


def main() -> None:
    """Print one line per put time and number of tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--samples-per-shard", type=int, default=512)
    parser.add_argument("--put-seconds", type=float, nargs="+", default=[0.0, 0.2, 0.5])
    flags = parser.parse_args()
    torch.set_num_threads(1)
    for put_seconds in flags.put_seconds:
        for tasks_at_once in (1, 2, 3):
            seconds, stages = run(flags.shards, flags.samples_per_shard, put_seconds, tasks_at_once)
            print(f"put {put_seconds:.1f} s, {tasks_at_once} at once: {seconds:.2f} s; {stages}", flush=True)


if __name__ == "__main__":
    main()
