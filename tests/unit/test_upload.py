"""Checkpoints are stored beside training: whole or not at all, tried again where that helps, and a failure is never lost."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import torch

from genworker.errors import ObjectMissingError, StoreAccessError, StoreError, StoreFullError, TrainingError
from genworker.stores import open_store
from genworker.training import checkpoint
from genworker.training.checkpoint import Snapshot
from genworker.training.upload import Uploader

if TYPE_CHECKING:
    from genworker.stores import Store
    from genworker.stores.base import ObjectInfo


def snapshot(images_seen: int) -> Snapshot:
    return Snapshot({"networks.a": torch.arange(4.0)}, {"images_seen": images_seen}, {"seed": 0})


class FlakyStore:
    """A memory store whose puts fail with the errors that it is given, in turn, and may have to wait."""

    def __init__(self, *failures: StoreError) -> None:
        self._inner: Store = open_store(f"memory://{uuid.uuid4().hex}")
        self.url, self.failures = self._inner.url, list(failures)
        self.gate = threading.Event()
        self.gate.set()

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        assert self.gate.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        return self._inner.put(key, data, overwrite=overwrite)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def uploader(store: Any, *, patience: float = 30.0, **options: Any) -> Uploader:
    return Uploader(store, patience_seconds=patience, keep=2, **options)


def test_what_was_saved_is_there_after_waiting() -> None:
    """Snapshots are stored in order, what must come before each comes before it, and old ones are pruned."""
    store, order = FlakyStore(), []
    stored: list[str] = []
    upload = uploader(store, best=lambda: frozenset({10}), on_stored=stored.append)
    for images_seen in (10, 20, 30, 40):
        upload.save(snapshot(images_seen), lambda now=images_seen: order.append((now, list(stored))))  # type: ignore[misc]
    upload.wait()
    assert [checkpoint.images_of(key) for key in checkpoint.keys(store)] == [40, 30, 10]  # type: ignore[arg-type]
    assert stored == [checkpoint.key_of(images_seen) for images_seen in (10, 20, 30, 40)]
    assert [len(before) for _, before in order] == [0, 1, 2, 3]
    assert upload.last_key == checkpoint.key_of(40)


def test_training_does_not_wait_for_the_store() -> None:
    """`save` returns while the object is on its way; the next save waits for it."""
    store = FlakyStore()
    store.gate.clear()
    upload = uploader(store)
    upload.save(snapshot(10))
    with pytest.raises(ObjectMissingError):
        store.head(checkpoint.key_of(10))
    store.gate.set()
    upload.wait()
    assert checkpoint.read(store, checkpoint.key_of(10)).counters["images_seen"] == 10  # type: ignore[arg-type]


def test_a_store_that_comes_back_costs_only_time() -> None:
    """A failure that may pass is tried again, and told once."""
    events: list[str] = []
    upload = uploader(FlakyStore(StoreError("503"), StoreError("503")), on_event=events.append)
    upload.save(snapshot(10))
    upload.wait()
    assert upload.last_key == checkpoint.key_of(10)
    assert len(events) == 1
    assert "tried again for 30 s: 503" in events[0]


@pytest.mark.parametrize(
    ("failures", "patience"),
    [
        ([StoreAccessError("no credentials")], 30.0),
        ([StoreFullError("no space")], 30.0),
        ([StoreError("503")] * 99, 0.0),
    ],
)
def test_a_failure_that_stays_reaches_training_with_the_last_good_key(
    failures: list[StoreError], patience: float
) -> None:
    """What cannot help is not tried again; the error names the store's reason and the newest whole checkpoint."""
    store = FlakyStore()
    upload = uploader(store, patience=patience)
    upload.save(snapshot(10))
    upload.wait()
    store.failures = list(failures)
    upload.save(snapshot(20))
    with pytest.raises(
        TrainingError, match=rf"{failures[0]}; the last whole one is {checkpoint.key_of(10)}; mend the store"
    ):
        upload.save(snapshot(30))
    assert [checkpoint.images_of(key) for key in checkpoint.keys(store)] == [10]  # type: ignore[arg-type]


def test_a_resumed_run_names_the_checkpoint_that_it_resumed_from() -> None:
    """A first upload that fails after a resume leaves the run where it was, not without any checkpoint."""
    upload = uploader(FlakyStore(StoreFullError("no space")), last_key=checkpoint.key_of(10))
    upload.save(snapshot(20))
    with pytest.raises(TrainingError, match=f"no space; the last whole one is {checkpoint.key_of(10)}; mend the store"):
        upload.wait()


def test_closing_gives_up_waiting() -> None:
    """A run that ends for another reason does not sit out the store's patience."""
    upload = uploader(FlakyStore(*[StoreError("503")] * 99), patience=3600.0)
    upload.save(snapshot(10))
    upload.close()  # would hang if it waited for the patience
