"""Old datasets go as a whole: which ones, and their removal in an order that no reader can stumble over.

    .genworker/removing.json   put first: from here on nobody adds to the dataset, and a removal that stopped is known as one
    _SUCCESS, _manifest.json   the marker, then what it vouches for: no reader finds the dataset any more
    everything else of it      side by side; what genworker did not make stays
    .genworker/plan.json, .genworker/removing.json   last

In: a store and how many datasets to keep. Out: the names of those removed. A removal that stops goes on with the next call.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from dataclasses import dataclass
from typing import Literal

from genworker.bulk.catalog import places
from genworker.bulk.commit import read_plan
from genworker.bulk.manifest import read_manifest
from genworker.bulk.plan import PLAN_KEY, REMOVING_KEY, SUCCESS_KEY, Plan
from genworker.bulk.removal import NOTICES, RETAIN, delete_dataset, own_objects, removed_by
from genworker.errors import DatasetError, GenworkerError, PlanError
from genworker.stores import child_url, open_store
from genworker.stores.base import ObjectInfo, Store


@dataclass(frozen=True)
class Doomed:
    """One dataset to remove: its place (ending with a slash) below the store's URL and what lies there.

    Attributes:
        place: where.
        objects: the dataset's.
        begun: whether a removal was, and was stopped.
        plan: what it was made by; None where a removal has come that far.
        foreign: objects that genworker did not make, which stay.
        problem: why it cannot be removed, or empty.
    """

    place: str
    objects: tuple[ObjectInfo, ...]
    begun: bool
    plan: Plan | None = None
    foreign: tuple[ObjectInfo, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The place without its slash."""
        return self.place.rstrip("/")

    @property
    def num_bytes(self) -> int:
        """Of all objects."""
        return sum(info.size for info in self.objects)


def find_old(store: Store, keep: int, by: Literal["name", "age"] = "name") -> list[Doomed]:
    """All but the ``keep`` newest published datasets, oldest first; before them those whose removal was begun.

    Args:
        store: below whose URL the datasets lie.
        keep: how many stay.
        by: what newest means: last by name, as dates in names sort, or published last.

    Raises:
        DatasetError: a dataset lies at the URL itself, or inside one that is to go.
    """
    objects = list(store.list())
    published, notices = places(objects, SUCCESS_KEY), places(objects, REMOVING_KEY)
    every = {**places(objects, PLAN_KEY), **published, **notices}
    if "" in every:
        raise DatasetError(f"{store.url}: is a dataset itself; name the URL below which the datasets of all runs lie")
    # What `genworker gc` was giving up is its to end: it leaves what others put there.
    begun = [place for place in notices if removed_by(store, place) == RETAIN]
    kept = [place for place in published if place not in begun]
    kept.sort(key=lambda place: (published[place].modified if by == "age" else 0.0, place))
    old = [*begun, *kept[: max(0, len(kept) - keep)]]
    for place in old:
        inside = [other for other in every if other.startswith(place) and other != place]
        if inside:
            raise DatasetError(
                f"{store.url}/{place}: holds another dataset at {inside[0]}, which would go with it; move one of them"
            )
    keys = [info.key for info in objects]  # in key order, so what lies below a place stands together

    def below(place: str) -> tuple[ObjectInfo, ...]:
        start = bisect.bisect_left(keys, place)
        return tuple(itertools.takewhile(lambda info: info.key.startswith(place), objects[start:]))

    def doomed(place: str) -> Doomed:
        there, half_gone = below(place), place in begun
        try:
            plan = _plan_of(open_store(child_url(store.url, place.rstrip("/"))), half_gone=half_gone)
        except GenworkerError as err:
            return Doomed(
                place, there, half_gone, problem=f"nobody can tell which objects are the dataset's own: {err}"
            )
        own = tuple(own_objects(there, plan, place))
        keys_of_own = {info.key for info in own}
        foreign = tuple(info for info in there if info.key not in keys_of_own)
        return Doomed(place, own, half_gone, plan, foreign)

    return [doomed(place) for place in old]


def remove_dataset(store: Store, doomed: Doomed) -> int:
    """Remove a dataset, its marker first; returns the number of its objects that were there."""
    store.put(doomed.place + REMOVING_KEY, NOTICES[RETAIN], overwrite=True)
    # Listed again: a driver that was slower than the others may have put a shard since.
    delete_dataset(
        store,
        doomed.place,
        lambda: (info.key for info in own_objects(store.list(doomed.place), doomed.plan, doomed.place)),
    )
    return len(doomed.objects)


def _plan_of(store: Store, *, half_gone: bool) -> Plan | None:
    """The plan of a dataset, from its manifest where it is missing or damaged; None where a removal has deleted it."""
    with contextlib.suppress(PlanError):
        plan = read_plan(store)
        if plan is not None or half_gone:
            return plan
    return read_manifest(store).plan
