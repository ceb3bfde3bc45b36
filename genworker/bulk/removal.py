"""The notice that a dataset is being removed, what goes with it, and the deletion of many objects.

    .genworker/removing.json   put before anything is deleted, deleted last; tells which command put it

In: a store. Out: who removes, or an error for whoever would add something. Who makes a dataset looks for the notice before he
begins and again while he publishes, so that nobody vouches for objects that are about to go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from genworker.bulk.layout import Layout
from genworker.bulk.plan import CONTROL_PREFIX, MANIFEST_KEY, PLAN_KEY, REMOVING_KEY, SUCCESS_KEY, Plan
from genworker.bundle import BUNDLE_KEY, SCORER_KEY, WEIGHTS_KEY
from genworker.errors import ObjectMissingError, PlanError
from genworker.stores.base import ObjectInfo, Store
from genworker.windows import map_in_windows

GC, RETAIN = "genworker gc --unfinished --delete", "genworker retain --delete"
NOTICES = {GC: b'{"by":"gc"}', RETAIN: b"{}"}

_MAX_NOTICE_BYTES = 64
# The names below .genworker/ that genworker gives; whatever else lies there is somebody's.
_CONTROL = re.compile(
    rf"{re.escape(CONTROL_PREFIX)}("
    r"(plan|calibration|removing)\.json"
    rf"|bundle/({'|'.join(map(re.escape, (BUNDLE_KEY, WEIGHTS_KEY, SCORER_KEY)))})"
    r"|(receipts|failures)/[0-9]+-[0-9a-f]{16}\.json"
    r"|(probe|doctor)/[0-9a-f]{32})"
)

# A deletion over a network is waiting, mostly: one after the other, a million would take hours.
_NUM_THREADS = 16
_WINDOW = 64 * _NUM_THREADS


def removed_by(store: Store, place: str = "") -> str | None:
    """The command whose notice lies below ``place`` (empty, or ending with a slash), `GC` or `RETAIN`, or None."""
    try:
        notice = store.get(place + REMOVING_KEY, length=_MAX_NOTICE_BYTES)
    except ObjectMissingError:
        return None
    return GC if notice == NOTICES[GC] else RETAIN


def check_kept(store: Store) -> None:
    """Raise PlanError when the dataset at this URL is being removed: what is added to it now would go too, or half of it."""
    command = removed_by(store)
    if command is not None:
        raise PlanError(
            f"{store.url}: `{command}` is removing this dataset, or was stopped while it did; let it end (run it again), "
            "then run this command again, or write to another URL; to keep what is left, delete "
            f"{store.url}/{REMOVING_KEY} when no removal runs"
        )


def is_control(key: str) -> bool:
    """Whether an object below .genworker/ has a name that genworker gives."""
    return _CONTROL.fullmatch(key) is not None


def own_objects(listed: Iterable[ObjectInfo], plan: Plan | None, place: str = "") -> Iterator[ObjectInfo]:
    """Of what is ``listed`` below ``place`` (empty, or ending with a slash), what a job left, without others' objects.

    Without a plan, where a removal has deleted the shards and stopped before its last step, control objects alone are.
    """
    layout = Layout(plan) if plan else None
    for info in listed:
        key = info.key.removeprefix(place)
        beside = key in {SUCCESS_KEY, MANIFEST_KEY} or is_control(key)
        if beside or (layout is not None and layout.owner(key) is not None):
            yield info


def delete_dataset(store: Store, place: str, *looks: Callable[[], Iterable[str]]) -> None:
    """Delete a dataset whose notice is there, in an order that no reader can stumble over and no stop can leave unknown.

    Args:
        store: above the dataset.
        place: of the dataset (empty, or ending with a slash).
        looks: each names, once those before it are deleted, the keys to delete next, side by side; between the marks that
            vouch for them, and the plan and the notice.

    Raises:
        StoreError: the first failure; another call goes on.
    """
    last = [place + PLAN_KEY, place + REMOVING_KEY]
    # The marker goes before what it vouches for; both, also where a driver put them after anybody looked.
    for key in (SUCCESS_KEY, MANIFEST_KEY):
        store.delete(place + key)
    for look in looks:
        delete_all(store, [key for key in look() if key not in last])
    for key in last:
        store.delete(key)


def delete_all(store: Store, keys: Iterable[str]) -> int:
    """Delete objects side by side, in no order; returns how many.

    Raises:
        StoreError: the first failure; what was not begun then stays.
    """
    return sum(1 for _ in map_in_windows(store.delete, keys, _NUM_THREADS, _WINDOW))
