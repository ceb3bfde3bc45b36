"""Checkpoints: the whole state of a run in one safetensors object, so that one PUT makes it or does not.

In: networks, weight average, optimizers, counters, conditions and the watchdog's state. Out: the same, exactly. All randomness
of training is addressed by the position in the run (see `genworker.sampling.latents`), so the counters are the state of every
rank's generator and of the loader; adaptive augmentation lives in a buffer of the networks. Nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from genworker.config import canonical_json
from genworker.errors import CheckpointError, ObjectMissingError
from genworker.stores.base import Store
from genworker.training import numbered
from genworker.training.spec import TrainSpec, spec_differences
from genworker.training.state import TrainingState, below

PREFIX = "checkpoints/"
_SUFFIX = ".safetensors"
_HEADER_KEY = "genworker"
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, detached from the networks that go on training.

    Attributes:
        tensors: on the CPU.
        counters: as they were.
        identity: of the spec, so that another spec can be shown the differences.
        watchdog: the watchdog's state, JSON.
        good: whether the watchdog saw nothing amiss, so that a diverging run may go back to it.
        conditions: as they were; empty in checkpoints of versions that did not keep them.
        meter: what the report that comes next has seen so far, JSON; empty in checkpoints of versions that did not keep it.
    """

    tensors: Mapping[str, Tensor]
    counters: Mapping[str, int]
    identity: Mapping[str, Any]
    watchdog: Mapping[str, Any] = field(default_factory=dict)
    good: bool = True
    conditions: Mapping[str, Any] = field(default_factory=dict)
    meter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return key_of(self.counters["images_seen"])

    def to_bytes(self) -> bytes:
        """The object; equal snapshots give equal bytes."""
        facts = {name: value for name, value in vars(self).items() if name != "tensors"}
        # One entry, because safetensors writes several in random order.
        header = {_HEADER_KEY: canonical_json(facts | {"sha256": _digest(facts, self.tensors)})}
        return safetensors.torch.save(dict(self.tensors), metadata=header)

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """Read and check an object. Raises CheckpointError where it is torn, changed or something else."""
        try:
            tensors = safetensors.torch.load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            facts = json.loads(metadata[_HEADER_KEY])
            whole = facts.pop("sha256") == _digest(facts, tensors)
        except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as err:
            raise CheckpointError(f"is not a whole checkpoint: {err}") from err
        if not whole:
            raise CheckpointError("its content does not match its checksum")
        return cls(tensors, **facts)


def take(
    state: TrainingState,
    spec: TrainSpec,
    watchdog: Mapping[str, Any] | None = None,
    *,
    good: bool = True,
    meter: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Copy the state of a run, all of it, so that it can be stored while training goes on."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors().items()}
    counters, conditions = dict(vars(state.counters)), dict(vars(state.conditions))
    seen, next_report = copy.deepcopy(watchdog or {}), copy.deepcopy(meter or {})
    return Snapshot(tensors, counters, spec.identity(), seen, good, conditions, next_report)


def save(store: Store, snapshot: Snapshot) -> str:
    """Write a checkpoint and return its key; one of the same number of images is replaced."""
    store.put(snapshot.key, snapshot.to_bytes(), overwrite=True)
    return snapshot.key


def read(store: Store, key: str) -> Snapshot:
    """Read a checkpoint and check it. Raises CheckpointError, ObjectMissingError."""
    return Snapshot.from_bytes(store.get(key))


def restore(snapshot: Snapshot, state: TrainingState, spec: TrainSpec, where: str) -> None:
    """Load a checkpoint into a run's state; the run goes on in its precision.

    Raises:
        CheckpointError: with the differences, where it is of another spec or of other data.
    """
    if snapshot.identity != spec.identity():
        lines = "\n  ".join(spec_differences(spec.identity(), dict(snapshot.identity)))
        raise CheckpointError(
            f"{where} was written by another spec; train into another URL, or run the spec that is stored beside it in "
            f"spec.json. Differences:\n  {lines}"
        )
    theirs = dict(snapshot.conditions)
    precision = theirs.pop("precision", state.conditions.precision)
    ours = {name: value for name, value in vars(state.conditions).items() if name in theirs}
    if ours != theirs:
        lines = "\n  ".join(spec_differences(ours, theirs))
        raise CheckpointError(
            f"{where} was written while the data was another, so it cannot be gone on from exactly; bring the data back as it "
            f"was, or train into another URL. Differences:\n  {lines}"
        )
    state.load_tensors(snapshot.tensors)
    vars(state.counters).update(snapshot.counters)
    state.conditions.precision = precision


def load_latest(store: Store, state: TrainingState, spec: TrainSpec, skipped: list[str]) -> Snapshot | None:
    """Load the newest whole checkpoint into ``state`` and return it; None when there is none.

    Damaged ones are passed over and named in ``skipped``. Raises CheckpointError as `restore` does.
    """
    for key in keys(store):
        try:
            snapshot = read(store, key)
        except CheckpointError as err:
            skipped.append(f"{key}: {err}")
            continue
        restore(snapshot, state, spec, f"{store.url}/{key}")
        return snapshot
    return None


def key_of(images_seen: int) -> str:
    """The key of the checkpoint after ``images_seen`` images."""
    return numbered.key_of(PREFIX, images_seen, _SUFFIX)


def images_of(key: str) -> int:
    """The images seen of the checkpoint under ``key``."""
    images_seen = numbered.images_of(key, PREFIX, _SUFFIX)
    assert images_seen is not None, key
    return images_seen


def keys(store: Store) -> list[str]:
    """Keys of all checkpoints, newest first; what else lies beside them is somebody's."""
    found = (info.key for info in store.list(PREFIX))
    return sorted((key for key in found if numbered.images_of(key, PREFIX, _SUFFIX) is not None), reverse=True)


def is_good(store: Store, key: str) -> bool:
    """Whether a checkpoint says that nothing was amiss. Reads its header alone, and believes it."""
    try:
        length = int.from_bytes(store.get(key, length=8), "little")
        header = json.loads(store.get(key, start=8, length=min(length, _MAX_HEADER_BYTES)))
        return json.loads(header["__metadata__"][_HEADER_KEY])["good"] is True
    except (ObjectMissingError, ValueError, LookupError, TypeError):
        return False


def prune(store: Store, keep: int, best: frozenset[int] = frozenset()) -> None:
    """Delete old checkpoints.

    Args:
        store: of the run.
        keep: the newest so many stay, and the newest so many that are good, however many came after them: a divergence is seen
            some reports after it began.
        best: numbers of images whose checkpoints stay besides.
    """
    found = keys(store)
    good = (key for key in found if is_good(store, key))
    kept = {*found[:keep], *itertools.islice(good, keep)}
    for key in found:
        if key not in kept and images_of(key) not in best:
            store.delete(key)


def average_of(snapshot: Snapshot) -> dict[str, Tensor]:
    """The averaged weights of the served networks in a checkpoint, by the names of their state_dict."""
    return below(snapshot.tensors, "average.")


def trained_of(snapshot: Snapshot, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of networks in a checkpoint as they were trained, not averaged, by the names of their state_dict."""
    found = below(snapshot.tensors, "networks.")
    return {name: tensor for name, tensor in found.items() if name.partition(".")[0] in names}


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(canonical_json(facts).encode())
    for piece in _pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
