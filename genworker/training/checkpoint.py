"""Checkpoints: the whole state of a run in one safetensors object, so that one PUT makes it or does not.

In: networks, weight average, optimizers and counters. Out: the same, exactly. All randomness of training is addressed by the
position in the run (see `genworker.sampling.latents`), so there is no generator state to save. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from genworker.config import canonical_json
from genworker.errors import CheckpointError
from genworker.stores.base import Store

PREFIX = "checkpoints/"
_HEADER_KEY = "genworker"


@dataclass
class Counters:
    """What a run counts."""

    images_seen: int = 0
    nonfinite_steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training step changes."""

    networks: nn.ModuleDict
    average: nn.ModuleDict
    optimizers: Mapping[str, torch.optim.Optimizer]
    counters: Counters

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, views where possible."""
        named = {f"networks.{name}": tensor for name, tensor in self.networks.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for phase, optimizer in self.optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                named |= {f"optimizers.{phase}.{index}.{slot}": tensor for slot, tensor in slots.items()}
        return named

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors that `tensors` of an equal run gave. Raises CheckpointError where names or shapes differ."""
        try:
            self.networks.load_state_dict(_below(tensors, "networks."))
            self.average.load_state_dict(_below(tensors, "average."))
        except RuntimeError as err:
            raise CheckpointError(f"the checkpoint holds other networks than the spec builds: {err}") from err
        for phase, optimizer in self.optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below(tensors, f"optimizers.{phase}.").items():
                index, slot = name.split(".", 1)
                slots.setdefault(int(index), {})[slot] = tensor
            # Learning rates and betas follow the schedule; only the moments come from the checkpoint.
            optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save(store: Store, state: TrainingState, spec_id: str) -> str:
    """Write a checkpoint and return its key; an equal checkpoint that is there already is replaced."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    facts = {"spec_id": spec_id, "counters": vars(state.counters)}
    # One entry, because safetensors writes several in random order: equal states give equal bytes.
    header = {_HEADER_KEY: canonical_json(facts | {"sha256": _digest(facts, tensors)})}
    key = f"{PREFIX}images-{state.counters.images_seen:012d}.safetensors"
    store.put(key, safetensors.torch.save(tensors, metadata=header), overwrite=True)
    return key


def load_latest(store: Store, state: TrainingState, spec_id: str, skipped: list[str]) -> bool:
    """Load the newest whole checkpoint into ``state``; False when there is none.

    Damaged ones are passed over and named in ``skipped``. Raises CheckpointError when a whole one belongs to another spec.
    """
    for key in keys(store):
        try:
            tensors, header = _read(store.get(key))
        except CheckpointError as err:
            skipped.append(f"{key}: {err}")
            continue
        if header["spec_id"] != spec_id:
            raise CheckpointError(
                f"{store.url}/{key} was written by spec {header['spec_id']}, this run is spec {spec_id}; "
                "train into another URL, or run the spec that is stored beside it in spec.json"
            )
        state.load_tensors(tensors)
        vars(state.counters).update(header["counters"])
        return True
    return False


def keys(store: Store) -> list[str]:
    """Keys of all checkpoints, newest first."""
    return sorted((info.key for info in store.list(PREFIX) if info.key.endswith(".safetensors")), reverse=True)


def prune(store: Store, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for key in keys(store)[keep:]:
        store.delete(key)


def _read(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        facts = json.loads(metadata[_HEADER_KEY])
        whole = facts.pop("sha256") == _digest(facts, tensors)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as err:
        raise CheckpointError(f"is not a whole checkpoint: {err}") from err
    if not whole:
        raise CheckpointError("its content does not match its checksum")
    return tensors, facts


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
