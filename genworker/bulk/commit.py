"""The commit protocol: how shards become a dataset exactly once on a store that cannot rename.

    .genworker/plan.json        create-only; a second plan under the same URL is refused
    .genworker/calibration.json what was measured before the plan was made; nobody depends on it
    .genworker/bundle/...       what the plan's shards are made with
    data/<shard>                one create-only put each
    .genworker/receipts/...     batches of receipts, named by their content
    _manifest.json, _SUCCESS    create-only, last, after every shard was accounted for

Every step may be repeated by anybody at any time: two writers of one plan write equal bytes. What differs is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping

import numpy as np

from genworker import bundle as bundles
from genworker.bulk import removal
from genworker.bulk.layout import Layout
from genworker.bulk.manifest import Fault, parse
from genworker.bulk.plan import (
    BUNDLE_PREFIX,
    CALIBRATION_KEY,
    DATA_PREFIX,
    MANIFEST_KEY,
    MAX_PLAN_BYTES,
    PLAN_KEY,
    SUCCESS_KEY,
    Plan,
    Task,
    differences,
)
from genworker.bulk.receipt_table import ReceiptTable
from genworker.bulk.records import Manifest, Receipt, Success
from genworker.bulk.shard_table import ShardTable
from genworker.bundle import Bundle
from genworker.config import canonical_json
from genworker.errors import (
    BundleError,
    DatasetError,
    DeterminismError,
    ObjectExistsError,
    ObjectMissingError,
    PlanError,
    StoreError,
)
from genworker.sampling.calibration import Calibration
from genworker.stores.base import Store, get_at_most

_PUTS = 3  # of an object that is said to be there and is not


def read_plan(store: Store) -> Plan | None:
    """The plan under a URL, or None. Raises PlanError when it is not a plan that this version reads."""
    try:
        text = get_at_most(store, PLAN_KEY, MAX_PLAN_BYTES, PlanError)
    except ObjectMissingError:
        return None
    plan = parse(Plan, PLAN_KEY, text)
    if isinstance(plan, Fault):
        raise PlanError(f"{store.url}/{plan}")
    return plan


def claim(store: Store, plan: Plan) -> None:
    """Make ``plan`` the plan of a URL, or find that it already is.

    Raises:
        PlanError: the URL holds another plan; the message lists the differences.
    """
    with contextlib.suppress(ObjectExistsError):
        store.put(PLAN_KEY, canonical_json(plan.model_dump(mode="json")).encode())
    # Read back even after a successful put: on a store without conditional puts another plan may have come after it.
    _check_plan(store, plan)


def check_ours(store: Store, plan: Plan) -> None:
    """Raise PlanError when the URL is no longer the plan's: it is being removed, was removed, or holds another plan."""
    # In this order: a removal's notice goes after the plan, so that one of the two tells of it at any time.
    removal.check_kept(store)
    _check_plan(store, plan)


def _check_plan(store: Store, plan: Plan) -> None:
    theirs = read_plan(store)
    if theirs is None:
        raise PlanError(f"{store.url}/{PLAN_KEY}: vanished after it was written; something deletes objects here")
    if theirs.plan_id != plan.plan_id:
        lines = "\n  ".join(differences(plan, theirs))
        raise PlanError(
            f"{store.url} holds the plan of another dataset; write to another URL, or repeat the command that made it. "
            f"Differences:\n  {lines}"
        )


def agree(store: Store, plan: Plan) -> Plan:
    """Claim ``plan``, or accept the plan that another driver of the same request claimed first with other numerics.

    Raises:
        PlanError: as `claim`.
    """
    try:
        claim(store, plan)
    except PlanError:
        theirs = read_plan(store)
        if theirs is None or theirs.model_copy(update={"numerics": plan.numerics}) != plan:
            raise
        return theirs
    return plan


def keep_calibration(store: Store, calibration: Calibration) -> None:
    """Keep what was measured for the plan, for people; the first one stays."""
    with contextlib.suppress(ObjectExistsError):
        store.put(CALIBRATION_KEY, calibration.model_dump_json(indent=2).encode())


def store_bundle(store: Store, bundle: Bundle) -> None:
    """Put the bundle beside its plan, so that a dataset can always be regenerated from itself."""
    try:
        there = bundles.load_info(store, BUNDLE_PREFIX)
        present = there.digest == bundle.digest and (there.scorer == bundle.info.scorer or not bundle.has_scorer)
    except BundleError:
        present = False
    if not present:
        bundle.save(store, BUNDLE_PREFIX)


def put_same(store: Store, key: str, data: bytes, attempt: int) -> tuple[str, bool]:
    """Store an object of a shard, or find that it is stored; returns its SHA-256 and whether it was there.

    Raises:
        DeterminismError: the key holds other bytes.
    """
    try:
        stored = store.put(key, data)
    except ObjectExistsError as err:
        # A lost reply, a faster attempt, or another driver: equal bytes are success.
        there = store.head(key)
        sha256 = hashlib.sha256(data).hexdigest()
        if there.sha256 != sha256:
            raise DeterminismError(
                f"{store.url}/{key}: holds {there.size} bytes with SHA-256 {there.sha256}, attempt {attempt} made "
                f"{len(data)} bytes with {sha256}; one plan must give one result: find out which machine differs "
                "(`genworker verify --resample`), or remove the object if it is foreign"
            ) from err
        return sha256, True
    # Not taken again here: of large images that would be a hundredth of all that a shard costs.
    assert stored.sha256 is not None, "a put tells the digest"
    return stored.sha256, False


def commit_shard(store: Store, task: Task, data: bytes, attempt: int, *, beside_bytes: int = 0) -> Receipt:
    """Publish one shard's bytes under its key, after any files beside it, of ``beside_bytes`` together.

    Raises:
        DeterminismError: the key holds other bytes.
    """
    sha256, duplicate = put_same(store, task.key, data, attempt)
    return Receipt(
        shard_index=task.shard_index,
        num_samples=task.num_samples,
        num_bytes=len(data) + beside_bytes,
        sha256=sha256,
        attempt=attempt,
        duplicate=duplicate,
    )


def publish(store: Store, plan: Plan, receipts: Mapping[int, Receipt]) -> Manifest:
    """Write the manifest and _SUCCESS once every shard has a receipt.

    Raises:
        DatasetError: shards are missing, or data/ holds anything but the shards that the receipts describe.
        DeterminismError: another manifest is there.
        PlanError: the URL is no longer the plan's, as `check_ours`.
    """
    table = ReceiptTable.of(plan.num_shards, receipts)
    if not table.there.all():
        missing = np.flatnonzero(~table.there)
        raise DatasetError(f"{store.url}: {len(missing)} of {plan.num_shards} shards are missing, first {missing[0]}")
    layout = Layout(plan)
    there, strangers = layout.survey(store.list(DATA_PREFIX))
    same = there.complete & (there.num_objects == layout.whole()) & (there.num_bytes == table.num_bytes)
    wrong = [info.key for info in strangers] + [plan.shard_key(int(index)) for index in np.flatnonzero(~same)[:1]]
    if wrong:
        raise DatasetError(
            f"{store.url}/{wrong[0]}: is foreign, missing or of another size than its receipt says; nothing was "
            f"published: find out what changes objects under {DATA_PREFIX}, then run the command again"
        )
    keys = map(plan.shard_key, range(plan.num_shards))
    manifest = Manifest(
        plan_id=plan.plan_id,
        plan=plan,
        num_samples=int(table.num_samples.sum()),
        num_bytes=int(table.num_bytes.sum()),
        shards=ShardTable(keys, table.num_samples, table.num_bytes, table.sha256),
    )
    text = manifest.canonical().encode()
    _put_equal(store, MANIFEST_KEY, text)
    # Behind the manifest: a removal that this does not see has yet to delete the manifest, and _SUCCESS alone is no dataset.
    check_ours(store, plan)
    success = Success(plan_id=plan.plan_id, manifest_sha256=hashlib.sha256(text).hexdigest())
    _put_equal(store, SUCCESS_KEY, success.canonical().encode())
    return manifest


def _put_equal(store: Store, key: str, data: bytes) -> None:
    for _ in range(_PUTS):
        with contextlib.suppress(ObjectExistsError):
            store.put(key, data)
            return
        # "Taken" and "not there" together: a conflict that ended meanwhile, or a deletion; then the key is free again.
        with contextlib.suppress(ObjectMissingError):
            if store.get(key) == data:
                return
            raise DeterminismError(
                f"{store.url}/{key}: another one is there already, with other content; one plan must give one result: find out "
                "who wrote it, remove it if it is foreign, and run the same command again"
            )
    raise StoreError(
        f"{store.url}/{key}: the store says {_PUTS} times that it is taken, and that there is no such object; find out what "
        "deletes objects there, then run the same command again"
    )
