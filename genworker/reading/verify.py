"""A check of a dataset: every object that should be there is, holds what it should, and nothing else is there.

In: the URL of a dataset. Out: a list of `Fault`s, one line each, empty for a sound dataset. It reads everything, decodes
every image, and changes nothing; or it goes by the listing alone. Whether the generator would make the same samples again is
another check.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from genworker import bundle as bundles
from genworker.bulk.layout import Layout, getter
from genworker.bulk.manifest import Fault, examine, parse
from genworker.bulk.plan import BUNDLE_PREFIX, DATA_PREFIX, MAX_PLAN_BYTES, PLAN_KEY, Plan, differences
from genworker.bulk.shard_table import ShardTable
from genworker.bundle import BUNDLE_KEY, SCORER_KEY, WEIGHTS_KEY
from genworker.errors import BundleError, DatasetError, ObjectMissingError
from genworker.stores import open_store
from genworker.windows import map_in_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.bulk.plan import Task
    from genworker.bulk.records import Manifest
    from genworker.formats.base import Format
    from genworker.stores.base import ObjectInfo, Store

# Each thread holds one shard; decoding leaves Python's lock.
_NUM_THREADS = min(8, os.cpu_count() or 1)


def verify(
    url: str, *, sizes_only: bool = False, on_shard: Callable[[int, int], None] = lambda _done, _total: None
) -> list[Fault]:
    """Check a dataset from its manifest to its last pixel.

    Args:
        url: of the dataset.
        sizes_only: read no shard: compare what the store lists, keys and sizes, with the manifest. Finds what was lost, cut
            short or put there since, of a million shards with a thousand requests; not what was changed in place.
        on_shard: called with (shards done, shards in all) after each shard; with ``sizes_only`` once, at the end.

    Returns:
        Faults of control objects, then of shards in order, then foreign objects below data/. A shard has one fault at
        most: the first thing that is wrong with it. Without a manifest to go by, only that is a fault.

    Raises:
        StoreError: the store failed; nothing is known of the dataset.
        UsageError: the URL is of no known scheme.
    """
    return verify_store(open_store(url), sizes_only=sizes_only, on_shard=on_shard)


def verify_store(
    store: Store, *, sizes_only: bool = False, on_shard: Callable[[int, int], None] = lambda _done, _total: None
) -> list[Fault]:
    """`verify` of a store that is open."""
    manifest, faults = examine(store)
    if manifest is None:
        return faults
    faults += _plan_faults(store, manifest.plan)
    faults += _bundle_faults(store, manifest.plan, sizes_only=sizes_only)
    if sizes_only:
        faults += _size_faults(store, manifest)
        on_shard(len(manifest.shards), len(manifest.shards))
        return faults
    faults += _content_faults(store, manifest, on_shard)
    layout = Layout(manifest.plan)
    return faults + [_foreign(info) for info in store.list(DATA_PREFIX) if layout.owner(info.key) is None]


def _content_faults(store: Store, manifest: Manifest, on_shard: Callable[[int, int], None]) -> list[Fault]:
    check = _ShardCheck(store, manifest)
    total = len(manifest.shards)
    faults: list[Fault] = []
    for done, fault in enumerate(map_in_windows(check, manifest.plan.tasks(), _NUM_THREADS, 4 * _NUM_THREADS), 1):
        faults += [fault] if fault else []
        on_shard(done, total)
    return faults


def _size_faults(store: Store, manifest: Manifest) -> list[Fault]:
    layout, shards = Layout(manifest.plan), ShardTable.of(manifest.shards)
    there, strangers = layout.survey(store.list(DATA_PREFIX))
    whole = layout.whole()
    right = there.complete & (there.num_objects == whole) & (there.num_bytes == shards.num_bytes)
    faults = []
    for index in np.flatnonzero(~right).tolist():
        entry, lost = shards[index], int(whole[index] - there.num_objects[index])
        if not there.complete[index]:
            problem = "is missing, the manifest names it"
        elif lost:
            problem = f"lacks {lost} of the {whole[index] - 1} files beside it"
        else:
            problem = f"has {there.num_bytes[index]} bytes, the manifest says {entry.num_bytes}"
        faults.append(Fault(entry.key, problem))
    return faults + [_foreign(info) for info in strangers]


def _foreign(info: ObjectInfo) -> Fault:
    return Fault(
        info.key, f"foreign object of {info.size} bytes; only the manifest's shards may lie below {DATA_PREFIX}"
    )


def _plan_faults(store: Store, plan: Plan) -> list[Fault]:
    try:
        stored = parse(Plan, PLAN_KEY, store.get(PLAN_KEY, length=MAX_PLAN_BYTES))
    except ObjectMissingError:
        return [Fault(PLAN_KEY, "is missing")]
    if isinstance(stored, Fault):
        return [stored]
    if stored.plan_id != plan.plan_id:
        lines = [line.replace(" here, ", " in the manifest, ") for line in differences(plan, stored)]
        return [Fault(PLAN_KEY, f"differs from the plan in the manifest: {'; '.join(lines)}")]
    return []


def _bundle_faults(store: Store, plan: Plan, *, sizes_only: bool) -> list[Fault]:
    """What is wrong with the bundle beside the plan, which samples are made from again; it may be missing as a whole."""
    there = {info.key: info.size for info in store.list(BUNDLE_PREFIX)}
    own = BUNDLE_PREFIX + BUNDLE_KEY
    if not there:
        return []
    if own not in there:
        return [Fault(own, f"is missing, though {min(there)} is there")]
    try:
        if sizes_only:
            info = bundles.load_info(store, BUNDLE_PREFIX)
        else:
            info = bundles.load(store, BUNDLE_PREFIX, with_scorer="score" in plan.columns).info
    except BundleError as err:
        key, _, problem = str(err).removeprefix(f"{store.url}/").partition(": ")
        return [Fault(key, problem)]
    parts = [("bundle", info.digest, plan.bundle_digest)]
    sizes = {WEIGHTS_KEY: info.weights_bytes}
    if info.scorer is not None and "score" in plan.columns:
        parts.append(("scorer", info.scorer.sha256, str(plan.scorer_sha256)))
        sizes[SCORER_KEY] = info.scorer.num_bytes
    faults = [
        Fault(own, f"is of {name} {seen[:16]}, the plan was made for {wanted[:16]}")
        for name, seen, wanted in parts
        if seen != wanted
    ]
    return faults or [
        Fault(BUNDLE_PREFIX + name, "is missing" if seen is None else f"has {seen} bytes, {BUNDLE_KEY} says {size}")
        for name, size in sizes.items()
        if (seen := there.get(BUNDLE_PREFIX + name)) != size
    ]


class _ShardCheck:
    """The check of one shard; safe to call from several threads."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._format: Format = manifest.plan.open_format()
        self._has_files = self._format.beside_name(0) is not None
        self._shards = ShardTable.of(manifest.shards)

    def __call__(self, task: Task) -> Fault | None:
        """The first fault of a shard, or None."""
        entry = self._shards[task.shard_index]
        try:
            data = self._store.get(entry.key)
        except ObjectMissingError:
            return Fault(entry.key, "is missing, the manifest names it")
        seen = hashlib.sha256(data).hexdigest()
        if seen != entry.sha256:
            # Digests tell a shard that lies under another's key from one that was damaged.
            if (other := self._shards.find(seen)) is not None:
                return Fault(entry.key, f"holds the bytes of {other}; the two were swapped or one was copied")
            if not self._has_files and len(data) != entry.num_bytes:
                change = "cut short" if len(data) < entry.num_bytes else "longer"
                return Fault(entry.key, f"is {change}: {len(data)} bytes, the manifest says {entry.num_bytes}")
            return Fault(entry.key, f"was changed: SHA-256 {seen}, the manifest says {entry.sha256}")
        try:
            problem = self._content_problem(task, data)
        except DatasetError as err:
            problem = str(err)
        return Fault(entry.key, problem) if problem else None

    def _content_problem(self, task: Task, data: bytes) -> str | None:
        # Reached with the right bytes only, so what is wrong here was wrong when the shard was written.
        plan = self._manifest.plan
        entry = self._manifest.shards[task.shard_index]
        reader = self._format.reader(data, getter(self._store, entry.key))
        if reader.num_bytes != entry.num_bytes:
            return f"has {reader.num_bytes} bytes, the manifest says {entry.num_bytes}"
        seen, expected = dict(reader.provenance), plan.provenance(task)
        for key in sorted(seen.keys() | expected.keys()):
            if seen.get(key) != expected.get(key):
                return f"says {key} {seen.get(key)!r}, the plan says {expected.get(key)!r}"
        indices = reader.sample_indices()
        if len(indices) != task.num_samples:
            return f"has {len(indices)} rows, the plan says {task.num_samples}"
        wrong = np.flatnonzero(indices != np.arange(task.first_index, task.first_index + task.num_samples))
        if len(wrong):
            row = int(wrong[0])
            return f"row {row} has sample_index {indices[row]}, expected {task.first_index + row}"
        num_classes = plan.image_schema.num_classes
        for batch in reader.batches():
            if batch.labels is not None and not 0 <= batch.labels.min() <= batch.labels.max() < num_classes:
                bad = int(np.flatnonzero((batch.labels < 0) | (batch.labels >= num_classes))[0])
                return f"sample {batch.sample_index[bad]} has label {batch.labels[bad]}, outside [0, {num_classes})"
        return None
