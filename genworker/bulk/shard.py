"""One task from beginning to end, in one process and without Ray: samples, encoding, one put, a receipt."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Generator

import torch

from genworker import bundle as bundles
from genworker import codecs, formats
from genworker.bulk import commit
from genworker.bulk.beside import Beside
from genworker.bulk.encoding import Encoder
from genworker.bulk.plan import BUNDLE_PREFIX, Numerics, Task
from genworker.bulk.records import Manifest, Receipt
from genworker.bulk.stages import StageSeconds
from genworker.bundle import Bundle
from genworker.errors import BundleError, OtherMachineError, PlanError
from genworker.formats.base import Put
from genworker.sampling.numerics import resolve_numerics
from genworker.schema import ImageSchema, SampleBatch
from genworker.stores.base import Store, is_there
from genworker.works.base import Work
from genworker.works.generate import GenerateWork


def libraries_of(format_name: str, codec_name: str, schema: ImageSchema) -> dict[str, str]:
    """Name and version of what encodes, for a plan's numerics."""
    codec = codecs.make(codec_name, schema)
    return {"codec": codec.library, "format": formats.make(format_name, schema, codec).library}


def numerics_here(
    device: torch.device,
    format_name: str,
    codec_name: str,
    schema: ImageSchema,
    *,
    force_float32: bool,
    micro_batch: int | None = None,
    num_cpus: int = 1,
) -> Numerics:
    """The numerics that a new plan gets when processes with ``num_cpus`` of this kind of machine will evaluate it."""
    libraries = libraries_of(format_name, codec_name, schema)
    return resolve_numerics(
        device, schema, libraries, force_float32=force_float32, micro_batch=micro_batch, num_cpus=num_cpus
    )


def _drop(_name: str, _data: bytes) -> None:
    """Where files go that only their digests are wanted of."""


class ShardMaker:
    """Makes shards of one plan, in as many threads as call it. Set up once per process: loads the bundle beside the plan.

    Threads take turns at generating, so that one shard is generated while those before it are encoded to their end,
    assembled and uploaded; each shard is made by one thread, and what goes wrong is raised there. In memory are, per thread,
    one encoded shard and a few micro-batches of pixels.

    Args:
        store: the dataset's.
        device: where the generator computes.
        num_cpus: processors of this process. A GPU leaves all of them to encoder threads, a CPU all but its own.
        bundle: the plan's, where it is at hand; otherwise it is read from beside the plan.
    """

    def __init__(self, store: Store, device: torch.device, num_cpus: int = 1, bundle: Bundle | None = None) -> None:
        plan = commit.read_plan(store)
        if plan is None:
            raise PlanError(f"{store.url}: there is no plan; `genworker generate` makes one")
        self.plan = plan
        self._store = store
        here = libraries_of(plan.format, plan.codec, plan.image_schema)
        for part, version in here.items():
            if plan.numerics.libraries.get(part) != version:
                raise OtherMachineError(
                    f"the plan's {part} is {plan.numerics.libraries.get(part)!r}, this process has {version!r}: its bytes "
                    "could differ; use the environment that the job was started with, or write to another URL"
                )
        self._format = plan.open_format()
        if bundle is None:
            if not is_there(store, BUNDLE_PREFIX + bundles.BUNDLE_KEY):
                raise BundleError(
                    f"{store.url}/{BUNDLE_PREFIX}{bundles.BUNDLE_KEY}: is missing, and shards are made from the bundle there; "
                    f"copy bundle {plan.bundle_digest[:16]} there"
                )
            bundle = bundles.load(store, BUNDLE_PREFIX, with_scorer="score" in plan.columns)
        self._work: Work = GenerateWork(plan, bundle, device)
        self._encoder = Encoder(codecs.make(plan.codec, plan.image_schema), num_cpus - (device.type == "cpu"))
        self._turn = threading.Lock()

    def encode(self, task: Task, stages: StageSeconds | None = None, put: Put = _drop) -> bytes:
        """The bytes of one shard, a pure function of the plan and the task; adds to ``stages`` where the time went.

        Files beside the shard, for which the bytes vouch, go to ``put``.
        """
        stages = stages or StageSeconds()
        writer = self._format.writer(self.plan.provenance(task), put)
        with contextlib.closing(self._in_turn(task, stages)) as batches:
            for batch, images in self._encoder.encode(batches, stages):
                with stages.timed("write"):
                    writer.write(batch, images)
        with stages.timed("write"):
            return writer.close()

    def make(self, task: Task, attempt: int) -> Receipt:
        """Make and commit one shard. Raises DeterminismError when the store holds it with other bytes."""
        stages = StageSeconds()
        with Beside(self._store, task, attempt) as beside:
            data = self.encode(task, stages, beside.put)
            with stages.timed("put"):
                beside_bytes = beside.wait()
                receipt = commit.commit_shard(self._store, task, data, attempt, beside_bytes=beside_bytes)
        return receipt.model_copy(update={"stages": stages})

    def _in_turn(self, task: Task, stages: StageSeconds) -> Generator[SampleBatch]:
        """The samples of a task, made while no other thread makes any; whatever follows the last of them is not waited for."""
        with stages.timed("waiting"):
            self._turn.acquire()
        try:
            yield from self._work.run(task, stages)
        finally:
            self._turn.release()


def resample(
    store: Store,
    manifest: Manifest,
    count: int,
    device: torch.device,
    on_shard: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[str]:
    """Regenerate ``count`` shards, spread at random, and compare them with the manifest; returns one line per difference."""
    maker = ShardMaker(store, device)
    faults = []
    chosen = random.SystemRandom().sample(range(len(manifest.shards)), min(count, len(manifest.shards)))
    for done, index in enumerate(sorted(chosen)):
        entry = manifest.shards[index]
        seen = hashlib.sha256(maker.encode(maker.plan.task(index))).hexdigest()
        if seen != entry.sha256:
            faults.append(f"{entry.key}: regenerated bytes have SHA-256 {seen}, the manifest says {entry.sha256}")
        on_shard(done + 1, len(chosen))
    return faults
