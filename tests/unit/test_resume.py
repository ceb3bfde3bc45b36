"""A run goes on under the conditions that its checkpoint was made under, or says why it cannot."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from genworker.errors import CheckpointError
from genworker.stores import open_store
from genworker.training import checkpoint, loop, step
from genworker.training.hooks import Hooks
from tests.fakes import models

if TYPE_CHECKING:
    from genworker.sources.base import Source
    from genworker.stores import Store

SPEC = models.train_spec(images=32, report_every_images=16, precision="auto")
STEPS = 4


def run(store: Store, steps: int = STEPS, source: Source | None = None) -> list[str]:
    """Train up to so many steps; returns the events."""
    asked, events = itertools.count(1), list[str]()
    hooks = Hooks(on_event=events.append, should_stop=lambda: next(asked) >= steps)
    device = torch.device("cpu")
    loop.train(SPEC, source or models.shipped_source(), store, rank=0, world_size=1, device=device, hooks=hooks)
    return events


def compute_in(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """From now on this is what the processor is fastest in."""
    monkeypatch.setattr(step, "resolve_precision", lambda _precision, _device: dtype)


def new_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def newest(store: Store) -> bytes:
    return store.get(checkpoint.keys(store)[0])


def test_other_data_is_refused_with_the_differences() -> None:
    """Data that has grown, shrunk or changed since the checkpoint would make the rest of the run another one."""
    store = new_store()
    run(store, steps=2)
    before = newest(store)
    with pytest.raises(CheckpointError, match=r"while the data was another.*bring the data back") as caught:
        run(store, source=models.shipped_source(40))
    assert "source_images: 40 here, 48 there" in str(caught.value)
    assert f"source_digest: '{models.shipped_source(40).digest()}' here" in str(caught.value)
    assert newest(store) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_in_the_precision_that_it_began_in(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """On another processor, `auto` is what the checkpoint says: the bits are those of an unbroken run."""
    whole, parts = new_store(), new_store()
    compute_in(monkeypatch, dtype)
    run(whole)
    run(parts, steps=2)
    compute_in(monkeypatch, torch.bfloat16 if dtype == torch.float32 else torch.float32)
    run(parts)
    assert newest(parts) == newest(whole)
    elsewhere = new_store()
    run(elsewhere)
    ours, theirs = (checkpoint.Snapshot.from_bytes(newest(store)) for store in (elsewhere, whole))
    assert any(not torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from_and_that_is_said() -> None:
    """It did not keep its conditions, so nothing can be compared."""
    whole, parts = new_store(), new_store()
    assert not any("earlier version" in event for event in run(whole))
    run(parts, steps=2)
    key = checkpoint.keys(parts)[0]
    checkpoint.save(parts, replace(checkpoint.read(parts, key), conditions={}))
    events = run(parts)
    assert sum(event.startswith(f"{key} is of an earlier version") for event in events) == 1
    assert newest(parts) == newest(whole)
