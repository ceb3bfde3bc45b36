"""The ledger of a job: which shards are in, told from receipts and from the listing of data/ together.

In: a store and a plan. Out: batches of receipts, each an object named by its content, and the table of all of them. A stored
shard that no receipt names is opened and checked before it counts; nothing is ever removed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from pydantic import ValidationError

from genworker.bulk.layout import Layout, Stored, getter
from genworker.bulk.plan import DATA_PREFIX, RECEIPTS_PREFIX, Plan, Task
from genworker.bulk.receipt_table import ReceiptTable
from genworker.bulk.records import MAX_RECEIPTS_BYTES, Receipt, ReceiptBatch
from genworker.device import num_processors
from genworker.errors import DatasetError, DeterminismError, ObjectExistsError
from genworker.reading.shard import naming
from genworker.stores.base import ObjectInfo, Store
from genworker.windows import map_in_windows

# To look into shards that no receipt names.
_MOST_THREADS, _TASKS_PER_THREAD, _MOST_BYTES = 16, 4, 2**30


def write(store: Store, plan: Plan, receipts: Iterable[Receipt]) -> None:
    """Store a batch of receipts; the same batch is stored once."""
    batch = ReceiptBatch(plan_id=plan.plan_id, receipts=tuple(sorted(receipts, key=lambda r: r.shard_index)))
    if not batch.receipts:
        return
    text = batch.canonical().encode()
    first, name = batch.receipts[0].shard_index, hashlib.sha256(text).hexdigest()[:16]
    with contextlib.suppress(ObjectExistsError):
        store.put(f"{RECEIPTS_PREFIX}{first:08d}-{name}.json", text)


def read(store: Store, plan: Plan) -> ReceiptTable:
    """All receipts of the plan by shard index. Raises DeterminismError when two disagree."""
    receipts = ReceiptTable(plan.num_shards)
    for info in store.list(RECEIPTS_PREFIX):
        if info.size > MAX_RECEIPTS_BYTES:
            raise DatasetError(f"{store.url}/{info.key}: has {info.size} bytes; no batch of receipts has so many")
        try:
            batch = ReceiptBatch.model_validate_json(store.get(info.key))
        except ValidationError as err:
            raise DatasetError(f"{store.url}/{info.key}: is not a batch of receipts: {err.errors()[0]['msg']}") from err
        if batch.plan_id != plan.plan_id:
            raise DatasetError(
                f"{store.url}/{info.key}: belongs to plan {batch.plan_id}, not {plan.plan_id}; it was not written by this job: "
                "move it away and run the command again"
            )
        for receipt in batch.receipts:
            if receipt.shard_index >= plan.num_shards:
                raise DatasetError(
                    f"{store.url}/{info.key}: names shard {receipt.shard_index}, the plan has {plan.num_shards}; it was "
                    "damaged: remove it and run the command again"
                )
            other = receipts.setdefault(receipt.shard_index, receipt)
            if other.sha256 != receipt.sha256:
                raise DeterminismError(
                    f"{plan.shard_key(receipt.shard_index)}: attempt {other.attempt} gave SHA-256 {other.sha256}, attempt "
                    f"{receipt.attempt} gave {receipt.sha256}; one plan must give one result"
                )
    return receipts


def committed(
    store: Store,
    plan: Plan,
    receipts: Mapping[int, Receipt] | None = None,
    on_adopted: Callable[[Receipt, int, int], None] = lambda _receipt, _done, _total: None,
) -> ReceiptTable:
    """What was committed so far, by shard index, from storage alone.

    A shard that is stored but named by no receipt (the driver died in between) is opened and checked to be the plan's own.
    ``receipts`` is what `read` gave, for a caller that has read them already. ``on_adopted`` is told of each such shard: its
    receipt, how many there were so far, and how many there are.

    Raises:
        DatasetError: data/ holds an object that is no shard of this plan, or one that differs from its receipt.
    """
    if receipts is None:
        receipts = read(store, plan)
    layout = Layout(plan)
    there, strangers = _survey(store, layout, plan)
    if strangers:
        raise DatasetError(
            f"{store.url}/{strangers[0].key}: is no shard of plan {plan.plan_id}; nothing else may lie under {DATA_PREFIX}: "
            "move it away and run the command again"
        )
    # Where the object under the key is missing, files are there in part; making the shard again finds them equal.
    found, whole = ReceiptTable.of(plan.num_shards, receipts).where(there.complete), layout.whole()
    nameless = np.flatnonzero(there.complete & ~found.there)
    largest = int(there.num_bytes[nameless].max(initial=1))
    for done, receipt in enumerate(_adopt_all(store, plan, nameless.tolist(), largest), 1):
        found[receipt.shard_index] = receipt
        on_adopted(receipt, done, len(nameless))
    changed = there.complete & ((there.num_objects != whole) | (there.num_bytes != found.num_bytes))
    for index in map(int, np.flatnonzero(changed)):
        raise DatasetError(
            f"{store.url}/{plan.shard_key(index)}: has {there.num_bytes[index]} bytes{_in_objects(there.num_objects[index])}, "
            f"its receipt says {found.num_bytes[index]}{_in_objects(whole[index])}; it was changed after it was written: "
            "remove it and run the command again"
        )
    return found


def _survey(store: Store, layout: Layout, plan: Plan) -> tuple[Stored, list[ObjectInfo]]:
    """What is there of each shard.

    A listing takes a while, in which another driver may put a shard's files behind it and the shard's key before it; so what
    lacks files is looked at again, until it lacks them in a listing that began later.
    """
    lacked, whole = np.zeros(plan.num_shards, np.bool_), layout.whole()
    while True:
        there, strangers = layout.survey(store.list(DATA_PREFIX))
        lacks = there.complete & (there.num_objects < whole)
        if not (lacks & ~lacked).any():
            return there, strangers
        lacked |= lacks


def _in_objects(count: int) -> str:
    return f" in {count} objects" if count > 1 else ""


def _adopt_all(store: Store, plan: Plan, indices: list[int], largest: int) -> Iterator[Receipt]:
    """`adopt` for all shards, in order; several at once where there are many, as far as they fit into memory together."""
    num_threads = min(_MOST_THREADS, num_processors(), len(indices) // _TASKS_PER_THREAD, _MOST_BYTES // largest)
    tasks = map(plan.task, indices)
    if num_threads <= 1:
        yield from (adopt(store, plan, task) for task in tasks)
        return
    yield from map_in_windows(lambda task: adopt(store, plan, task), tasks, num_threads, 4 * num_threads)


def adopt(store: Store, plan: Plan, task: Task) -> Receipt:
    """Make the receipt of a stored shard that has none, after checking that it is whole and of this plan."""
    data = store.get(task.key)
    with naming(store, task.key):
        reader = plan.open_format().reader(data, getter(store, task.key))
        provenance = dict(reader.provenance)
        if provenance != plan.provenance(task):
            raise DatasetError(
                f"says that it is {provenance}, expected {plan.provenance(task)}; it was not written by this job: remove it "
                "and run the command again"
            )
        # Every sample is decoded, because from here on the receipt vouches for these bytes.
        indices = [int(index) for batch in reader.batches() for index in batch.sample_index]
        if indices != list(range(task.first_index, task.first_index + task.num_samples)):
            raise DatasetError("holds other samples than its plan says: remove it and run the command again")
    return Receipt(
        shard_index=task.shard_index,
        num_samples=task.num_samples,
        num_bytes=reader.num_bytes,
        sha256=hashlib.sha256(data).hexdigest(),
    )
