"""Whether a URL without a plan is free for one: what a job would stumble over later is found before anything is written.

In: a store and the plan that is to be claimed. Out: nothing, or an error. What an earlier job of the same plan left is no
obstacle: its shards, receipts and manifest are found again.
"""

from __future__ import annotations

import itertools

from genworker.bulk import ledger
from genworker.bulk.commit import read_plan
from genworker.bulk.layout import Layout
from genworker.bulk.manifest import Fault, parse
from genworker.bulk.plan import DATA_PREFIX, MANIFEST_KEY, RECEIPTS_PREFIX, SUCCESS_KEY, Plan
from genworker.bulk.records import (
    MAX_MANIFEST_BYTES,
    MAX_NOTE_BYTES,
    MAX_RECEIPTS_BYTES,
    Manifest,
    ReceiptBatch,
    Success,
)
from genworker.errors import DatasetError, ObjectMissingError
from genworker.stores.base import Store, get_at_most, is_there

_LOOKED_AT = 1_000  # objects; what stores list in one request

_OfPlan = Manifest | Success | ReceiptBatch


def check_vacant(store: Store, plan: Plan) -> None:
    """Look for what the job of ``plan`` could not go on beside. It reads a page of listings and some objects at most.

    Raises:
        DatasetError: something of another dataset lies there, or something foreign; nothing was written.
    """
    problem = _problem(store, plan)
    # With a plan that came meanwhile all of it may be another driver's, and `claim` tells of that.
    if problem is not None and read_plan(store) is None:
        raise DatasetError(f"{store.url}/{problem}; write to another URL, or move it away; nothing was written")


def _problem(store: Store, plan: Plan) -> str | None:
    if is_there(store, DATA_PREFIX.rstrip("/")):
        return f"{DATA_PREFIX.rstrip('/')}: is an object where the folder of the shards belongs"
    kinds: tuple[tuple[str, type[_OfPlan], int], ...] = (
        (MANIFEST_KEY, Manifest, MAX_MANIFEST_BYTES),
        (SUCCESS_KEY, Success, MAX_NOTE_BYTES),
    )
    for key, *_ in kinds:
        if (below := next(iter(store.list(f"{key}/")), None)) is not None:
            return f"{below.key}: is there where {key} belongs, which a folder on a disk cannot be beside"
    receipts = next(iter(store.list(RECEIPTS_PREFIX)), None)
    if receipts is not None:
        kinds += ((receipts.key, ReceiptBatch, MAX_RECEIPTS_BYTES),)
    for key, kind, most in kinds:
        if (found := _other_plan(store, key, kind, most, plan)) is not None:
            return found
    page = [info.key for info in itertools.islice(store.list(DATA_PREFIX), _LOOKED_AT)]
    owner = Layout(plan).owner
    for key in page:
        if owner(key) is None:
            return f"{key}: is there without a plan and is no shard of this dataset; nothing else may lie under {DATA_PREFIX}"
    shards = dict.fromkeys(index for key in page if (index := owner(key)) is not None)
    whole = next((index for index in shards if is_there(store, plan.shard_key(index))), None)
    if whole is not None:
        return _other_shard(store, plan, whole)
    return f"{page[0]}: is there without a plan or a table of its shard, so nobody knows whose it is" if page else None


def _other_shard(store: Store, plan: Plan, shard: int) -> str | None:
    """What is wrong with a stored shard, and so most likely with all of its dataset."""
    key = plan.shard_key(shard)
    try:
        ledger.adopt(store, plan, plan.task(shard))
    except DatasetError as err:
        why = str(err).removeprefix(f"{store.url}/").removeprefix(f"{key}: ")
        for advice in ("; it was not written by this job", ": remove it"):
            why = why.partition(advice)[0]
        return f"{key}: is there without a plan: {why}"
    return None


def _other_plan(store: Store, key: str, kind: type[_OfPlan], most: int, plan: Plan) -> str | None:
    try:
        found = parse(kind, key, get_at_most(store, key, most, DatasetError))
    except ObjectMissingError:
        return None
    except DatasetError as err:
        return f"{key}: is there without a plan: {err}"
    if isinstance(found, Fault):
        return f"{key}: is there without a plan, and {found.problem}"
    if found.plan_id == plan.plan_id:
        return None
    return f"{key}: is there without a plan and belongs to plan {found.plan_id}, not {plan.plan_id}"
