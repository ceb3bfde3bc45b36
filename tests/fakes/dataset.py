"""A small published dataset whose pixels and labels are arithmetic of the sample index.

In: a store's URL and a shape. Out: plan, shards, receipts, manifest and _SUCCESS as a finished bulk job leaves them,
written with the real codec and format.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from genworker import codecs, formats
from genworker.bulk.layout import beside_key
from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, SUCCESS_KEY, Column, Numerics, Plan, Task
from genworker.bulk.records import Manifest, Receipt, ReceiptBatch, Success
from genworker.bulk.shard_table import ShardEntry
from genworker.config import canonical_json
from genworker.formats.base import Put
from genworker.schema import NO_EXTRAS, Extras, ImageSchema, SampleBatch
from genworker.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.schema import Int64Array, Pixels

SCHEMA = ImageSchema(channels=3, height=7, width=5, num_classes=3, class_names=("boot", "bag", "coat"))
LATENT_DIM = 6


def pixels_of(schema: ImageSchema, indices: Int64Array) -> Pixels:
    """The pixels of samples, uint8 [N, H, W, C]; different for any two indices below 2**16 (given two columns or more)."""
    grid = np.indices(schema.pixel_shape).transpose(1, 2, 3, 0) @ np.array([31, 17, 7])
    low, high = indices % 256, indices // 256
    pixels: Pixels = (low[:, None, None, None] + grid).astype(np.uint8)
    pixels[:, 0, 0] = low[:, None]
    pixels[:, -1, -1] = high[:, None]
    return pixels


def labels_of(schema: ImageSchema, indices: Int64Array) -> Int64Array | None:
    """The labels of samples, int64 [N], or None for a schema without classes."""
    return indices * 5 % schema.num_classes if schema.num_classes else None


def samples_of(schema: ImageSchema, indices: Int64Array, extras: Extras = NO_EXTRAS) -> SampleBatch:
    """Samples by index, with latents and scores where ``extras`` wants them."""
    grid = indices[:, None] + np.arange(extras.latent_dim) / 7
    return SampleBatch(
        indices,
        pixels_of(schema, indices),
        labels_of(schema, indices),
        latents=grid.astype(np.float32) if extras.latent_dim else None,
        scores=(indices / -3).astype(np.float32) if extras.score else None,
    )


def make_plan(
    *,
    schema: ImageSchema = SCHEMA,
    num_samples: int = 50,
    samples_per_shard: int = 15,
    codec: str = "png",
    format: str = "parquet",
    seed: int = 0,
    columns: tuple[Column, ...] = ("label",),
    bundle_digest: str = hashlib.sha256(b"arithmetic").hexdigest(),
) -> Plan:
    """A plan for arithmetic samples."""
    encoder = codecs.make(codec, schema)
    return Plan(
        bundle_digest=bundle_digest,
        image_schema=schema,
        seed=seed,
        num_samples=num_samples,
        samples_per_shard=samples_per_shard,
        format=format,
        codec=codec,
        columns=columns,
        latent_dim=LATENT_DIM if "latents" in columns else 0,
        scorer_sha256="5" * 64 if "score" in columns else None,
        numerics=Numerics(
            device_class="cpu/any",
            dtype="float32",
            memory_format="contiguous",
            micro_batch=64,
            libraries={"codec": encoder.library, "format": formats.make(format, schema, encoder).library},
        ),
    )


def shard_bytes(plan: Plan, task: Task, put: Put = lambda _name, _data: None) -> bytes:
    """One shard of a plan; files beside it go to ``put``."""
    writer = plan.open_format().writer(plan.provenance(task), put)
    indices = np.arange(task.first_index, task.first_index + task.num_samples)
    writer.write(samples_of(plan.stored_schema, indices, plan.extras))
    return writer.close()


def publish(
    url: str,
    plan: Plan,
    *,
    make_shard: Callable[[Plan, Task], bytes] = shard_bytes,
    num_receipt_copies: int = 1,
    finish: bool = True,
) -> Manifest:
    """Write a dataset to ``url`` and return its manifest.

    Args:
        url: of an empty place in a store.
        plan: what to write.
        make_shard: gives the bytes of a shard; replace it to publish shards that are wrong.
        num_receipt_copies: receipt objects per shard, each with the receipt of one attempt.
        finish: False leaves out the manifest and _SUCCESS, as a job that is still running does.
    """
    store = open_store(url)
    store.put(PLAN_KEY, canonical_json(plan.model_dump(mode="json")).encode())
    entries = []
    for task in plan.tasks():
        files: dict[str, bytes] = {}
        data = shard_bytes(plan, task, files.__setitem__) if make_shard is shard_bytes else make_shard(plan, task)
        sha256 = hashlib.sha256(data).hexdigest()
        for name, content in files.items():
            store.put(beside_key(task.key, name), content)
        store.put(task.key, data)
        num_bytes = len(data) + sum(map(len, files.values()))
        entries.append(ShardEntry(key=task.key, num_samples=task.num_samples, num_bytes=num_bytes, sha256=sha256))
        for attempt in range(num_receipt_copies):
            receipt = Receipt(
                shard_index=task.shard_index,
                num_samples=task.num_samples,
                num_bytes=num_bytes,
                sha256=sha256,
                attempt=attempt,
            )
            batch = ReceiptBatch(plan_id=plan.plan_id, receipts=(receipt,))
            store.put(f"{RECEIPTS_PREFIX}{task.shard_index:08d}-{attempt:016x}.json", batch.canonical().encode())
    manifest = Manifest(
        plan_id=plan.plan_id,
        plan=plan,
        num_samples=plan.num_samples,
        num_bytes=sum(entry.num_bytes for entry in entries),
        shards=tuple(entries),
    )
    if finish:
        text = manifest.canonical().encode()
        store.put(MANIFEST_KEY, text)
        success = Success(plan_id=plan.plan_id, manifest_sha256=hashlib.sha256(text).hexdigest())
        store.put(SUCCESS_KEY, success.canonical().encode())
    return manifest


def vouch(folder: Path, keys: list[str]) -> None:
    """Write the _manifest.json and _SUCCESS of shards that lie in a folder already, as far as sources look at them."""
    shards = [(key, (folder / key).read_bytes()) for key in keys]
    entries = [{"key": key, "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for key, data in shards]
    text = canonical_json({"shards": entries})
    (folder / MANIFEST_KEY).write_text(text)
    success = {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / SUCCESS_KEY).write_text(canonical_json(success))
