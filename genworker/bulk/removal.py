"""The notice that a dataset is being removed, and the deletion of many objects.

    .genworker/removing.json   put before anything is deleted, deleted last; tells which command put it

In: a store. Out: who removes, or an error for whoever would add something. Who makes a dataset looks for the notice before he
begins and again while he publishes, so that nobody vouches for objects that are about to go.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, REMOVING_KEY, SUCCESS_KEY
from genworker.errors import ObjectMissingError, PlanError
from genworker.stores.base import Store

GC, RETAIN = "genworker gc --unfinished --delete", "genworker retain --delete"
NOTICES = {GC: b'{"by":"gc"}', RETAIN: b"{}"}

_MAX_NOTICE_BYTES = 64

# A deletion over a network is waiting, mostly: one after the other, a million would take hours.
_NUM_THREADS = 16
_WINDOW = 64 * _NUM_THREADS  # so that a million objects are not a million pending calls


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
    left = iter(keys)
    deleted = 0
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        while window := list(itertools.islice(left, _WINDOW)):
            deleted += sum(1 for _ in pool.map(store.delete, window))
    return deleted
