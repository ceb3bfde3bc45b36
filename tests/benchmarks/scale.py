"""What a million shards cost a driver, with works that cost nothing.

    python -m tests.benchmarks.scale --tasks 100000 --shards 1000000

Two parts. The pool: real tasks through the real ShardPool and real Ray actors that make nothing. The protocol: a plan
through the driver's own steps, a resume, the manifest, its readers, status and gc, against a store in memory that holds of
each shard a bit. Prints seconds, CPU, peak memory of this process and requests to the store.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from genworker.bulk import commit
from genworker.bulk.gc import find_garbage
from genworker.bulk.manifest import read_manifest
from genworker.bulk.plan import DATA_PREFIX, MANIFEST_KEY, RECEIPTS_PREFIX, SUCCESS_KEY
from genworker.bulk.protocol import Driver
from genworker.reading.status import status
from genworker.reading.verify import verify_store
from genworker.stores import ObjectInfo
from genworker.stores.memory import MemoryStore
from tests.fakes import actors, models
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.bulk.plan import Plan, Task
    from genworker.bulk.records import Receipt

PAGE = 1_000  # objects that S3 lists with one request
NUM_ACTORS, DEPTH = 2, 2


class BitStore(MemoryStore):
    """A store that keeps a bit per shard: its bytes are those of its index. Counts requests as S3 would bill them."""

    def __init__(self, url: str, plan: Plan) -> None:
        super().__init__(url)
        self._plan = plan
        self._there = bytearray(plan.num_shards)
        self.requests: Counter[str] = Counter()

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        self.requests["put"] += 1
        index = self._plan.shard_index_of(key) if key.startswith(DATA_PREFIX) else None
        if index is None:
            return super().put(key, data, overwrite=overwrite)
        self._there[index] = 1
        return replace(self._info(index), sha256=hashlib.sha256(data).hexdigest())

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.requests["get"] += 1
        return super().get(key, start=start, length=length)

    def head(self, key: str) -> ObjectInfo:
        self.requests["head"] += 1
        return super().head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.requests["list"] += 1
        for info in super().list(prefix):
            if not info.key.startswith(DATA_PREFIX):
                yield info
        if DATA_PREFIX.startswith(prefix):
            self.requests["list"] += sum(self._there) // PAGE
            yield from (self._info(index) for index, there in enumerate(self._there) if there)

    def _info(self, index: int) -> ObjectInfo:
        return ObjectInfo(self._plan.shard_key(index), len(shard_bytes(index)), 1_000.0 + index / 100)


def shard_bytes(index: int) -> bytes:
    return b"%d" % index


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000, help="through Ray; 0 leaves that part out")
    parser.add_argument("--shards", type=int, default=1_000_000, help="of the plan; 0 leaves that part out")
    options = parser.parse_args()
    print("| step | wall clock | CPU time per shard | peak memory | above before | requests | ")
    print("|---|---|---|---|---|---|")
    if options.shards:
        protocol(options.shards)
    if options.tasks:
        pool(options.tasks)


@contextmanager
def measured(what: str, count: int, store: BitStore | None = None) -> Iterator[None]:
    """Print one row about the block."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak back to what is used now
    before, requests = memory("VmRSS"), Counter(store.requests) if store else Counter()
    started, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = memory("VmHWM")
    made = (store.requests if store else Counter()) - requests
    told = ", ".join(f"{kind} {number:,}" for kind, number in sorted(made.items())) or "none"
    print(
        f"| {what} | {seconds:.1f} s | {cpu / count * 1e6:.1f} us | {peak:,.0f} MiB | {peak - before:,.0f} MiB | {told} |",
        flush=True,
    )


def memory(field: str) -> float:
    """A field of this process's memory, MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def protocol(num_shards: int) -> None:
    """A plan of so many shards from claim to gc."""
    plan = fake.make_plan(num_samples=num_shards * 10, samples_per_shard=10)
    store = BitStore("memory://scale", plan)
    bundle = models.bundle_of()
    digests = 0

    def make(tasks: Iterator[Task]) -> Iterator[Receipt]:
        return (commit.commit_shard(store, task, shard_bytes(task.shard_index), 0) for task in tasks)

    with measured("enumerate the tasks of the plan", num_shards):
        digests = sum(task.num_samples for task in plan.tasks())
    assert digests == plan.num_samples
    with measured("claim, make (nothing), record, publish", num_shards, store):
        Driver(store, plan, bundle, make).run()
    control = sum(1 for info in store.list(".genworker/"))
    sizes = {key: store.head(key).size for key in (MANIFEST_KEY,)}
    receipts = [info.size for info in store.list(RECEIPTS_PREFIX)]
    digest = hashlib.sha256(store.get(MANIFEST_KEY)).hexdigest()
    with measured("read the manifest", num_shards, store):
        manifest = read_manifest(store)
    assert len(manifest.shards) == num_shards
    del manifest
    with measured("verify by sizes", num_shards, store):
        assert verify_store(store, sizes_only=True) == []
    for key in (MANIFEST_KEY, SUCCESS_KEY):
        store.delete(key)
    with measured("status of the unpublished job", num_shards, store):
        assert status(store).shards_done == num_shards
    with measured("resume when only the manifest is missing", num_shards, store):
        Driver(store, plan, bundle, make).run()
    assert hashlib.sha256(store.get(MANIFEST_KEY)).hexdigest() == digest
    with measured("gc", num_shards, store):
        garbage = find_garbage(store, older_than_seconds=0.0)
    assert len(garbage) == len(receipts)
    print(
        f"\ncontrol objects: {control:,} ({len(receipts):,} of them receipts, {sum(receipts) / 2**20:.1f} MiB), "
        f"manifest {sizes[MANIFEST_KEY] / 2**20:.1f} MiB, {sizes[MANIFEST_KEY] / num_shards:.0f} bytes per shard\n"
    )


def pool(num_tasks: int) -> None:
    """So many tasks through actors that make nothing."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    from genworker.bulk.capacity import fixed
    from genworker.bulk.plan import Task
    from genworker.bulk.pool import ShardPool

    ray.init(
        address="local", num_cpus=NUM_ACTORS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    remote = ray.remote(actors.Idle).options(num_cpus=0, max_restarts=0, max_concurrency=DEPTH)
    shards = ShardPool(remote.remote, fixed(NUM_ACTORS), depth=DEPTH)
    for _ in shards.run(Task(index, index, 1, f"data/{index}") for index in range(100)):
        pass
    with measured(f"{num_tasks:,} tasks through {NUM_ACTORS} actors", num_tasks):
        done = sum(1 for _ in shards.run(Task(index, index, 1, f"data/{index}") for index in range(num_tasks)))
    assert done == num_tasks
    shards.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
