"""The deletion of many objects: side by side, the marks first, the plan and the notice last, and none after a failure."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

import pytest

from genworker.bulk import commit
from genworker.bulk.gc import find_garbage, give_up, remove
from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY, RECEIPTS_PREFIX, REMOVING_KEY, SUCCESS_KEY
from genworker.bulk.removal import delete_all
from genworker.bulk.retention import Doomed, remove_dataset
from genworker.errors import StoreError
from genworker.stores.memory import MemoryStore
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE_BY_SIDE = 16
PLAN = fake.make_plan(num_samples=32, samples_per_shard=1)


def give_up_at(store: MemoryStore) -> None:
    MemoryStore(store.url).delete(SUCCESS_KEY)  # the driver died between manifest and marker
    give_up(store, older_than_seconds=0.0)


def retain_at(store: MemoryStore) -> None:
    remove_dataset(store, Doomed("", tuple(store.list()), begun=False, plan=commit.read_plan(store)))


class Slow(MemoryStore):
    """A store that answers deletions below ``slow`` only when sixteen of them wait."""

    def __init__(self, slow: str) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")
        self.deleted: list[str] = []
        self._slow = slow
        self._barrier = threading.Barrier(SIDE_BY_SIDE, timeout=5.0)

    def delete(self, key: str) -> None:
        """Note the key when it is gone."""
        if key.startswith(self._slow):
            self._barrier.wait()
        super().delete(key)
        self.deleted.append(key)


@pytest.mark.parametrize("remove_at", [give_up_at, retain_at])
def test_shards_go_side_by_side_between_marks_and_plan(remove_at: Callable[[MemoryStore], None]) -> None:
    store = Slow("data/")
    fake.publish(store.url, PLAN)
    remove_at(store)
    assert store.deleted[:2] == [SUCCESS_KEY, MANIFEST_KEY]
    assert store.deleted[-2:] == [PLAN_KEY, REMOVING_KEY]
    assert len(store.deleted) == len(set(store.deleted)) == 2 * PLAN.num_shards + 4
    assert list(store.list()) == []


def test_receipts_of_a_published_dataset_go_side_by_side() -> None:
    store = Slow(RECEIPTS_PREFIX)
    fake.publish(store.url, PLAN)
    remove(store, find_garbage(store, older_than_seconds=0.0))
    assert len(store.deleted) == PLAN.num_shards


class Refusing(MemoryStore):
    """A store that does not delete one shard."""

    refused = True

    def delete(self, key: str) -> None:
        if self.refused and key == PLAN.shard_key(3):
            raise StoreError(f"delete {key!r}: not today")
        super().delete(key)


@pytest.mark.parametrize("remove_at", [give_up_at, retain_at])
def test_a_failure_ends_a_removal(remove_at: Callable[[MemoryStore], None]) -> None:
    """It is told, the plan and the notice stay, and the next call ends what it began."""
    store = Refusing(f"memory://{uuid.uuid4().hex}")
    fake.publish(store.url, PLAN)
    with pytest.raises(StoreError, match="not today"):
        remove_at(store)
    assert {PLAN_KEY, REMOVING_KEY, PLAN.shard_key(3)} <= {info.key for info in store.list()}
    store.refused = False
    remove_at(store)
    assert list(store.list()) == []


def test_no_more_is_begun_after_a_failure() -> None:
    """Of ten thousand deletions that fail, only some are tried."""
    tried = []

    class Down(MemoryStore):
        def delete(self, key: str) -> None:
            tried.append(key)
            raise StoreError(f"delete {key!r}: the store is down")

    with pytest.raises(StoreError, match="delete 'data/0': the store is down"):
        delete_all(Down(f"memory://{uuid.uuid4().hex}"), (f"data/{index}" for index in range(10_000)))
    assert len(tried) < 2_000
