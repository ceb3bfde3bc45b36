"""How a run goes on from its newest checkpoint, on every rank alike.

In: a trainer as its spec makes it, and the run's store. Out: the trainer as the checkpoint had it. What would make the rest of
the run another one than it was to be (another spec, other data) is refused; all ranks compute in one precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from genworker.errors import CheckpointError
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.step import Trainer

_PRECISIONS = ("float32", "bfloat16")


def resume(trainer: Trainer, store: Store, on_event: Callable[[str], None]) -> checkpoint.Snapshot | None:
    """Load the newest whole checkpoint and return it; None when there is none. Every rank must call it.

    ``training.precision: auto`` is what the checkpoint has, or else what rank 0's processor is fastest in.

    Raises:
        CheckpointError: the checkpoint is of another spec, of other data, in a precision that this processor lacks, or another
            one than rank 0 found.
    """
    skipped: list[str] = []
    snapshot = checkpoint.load_latest(store, trainer.state, trainer.spec, skipped)
    for damaged in skipped:
        on_event(f"passed over a damaged checkpoint, {damaged}")
    here = trainer.state.counters.images_seen
    first = trainer.group.from_first(here)
    if here != first:
        raise CheckpointError(
            f"{store.url}: rank {trainer.group.rank} found a checkpoint of {here} images, rank 0 one of {first}; another run "
            "writes to the same URL: stop it, then run the command again"
        )
    if snapshot is not None and not snapshot.conditions:
        on_event(
            f"{snapshot.key} is of an earlier version, which did not keep what the data was and in which precision it was "
            "computed: that both are the same is not checked"
        )
    conditions = trainer.state.conditions
    conditions.precision = _PRECISIONS[trainer.group.from_first(_PRECISIONS.index(conditions.precision))]
    if trainer.dtype == torch.bfloat16 and trainer.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise CheckpointError(
            f"{store.url}: the run computes in bfloat16, which rank {trainer.group.rank}'s "
            f"{torch.cuda.get_device_name(trainer.device)} cannot; go on with other GPUs (resources.node_labels), or set "
            "training.precision float32 and train into another URL"
        )
    return snapshot
