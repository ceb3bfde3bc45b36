"""What a training step changes, and under which conditions: all that a checkpoint has to hold.

In: networks, weight average, optimizers, counters. Out: their tensors by name, and back. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genworker.errors import CheckpointError


@dataclass
class Counters:
    """What a run counts."""

    images_seen: int = 0
    nonfinite_steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0


@dataclass
class Conditions:
    """What decides the bits of a run besides its spec.

    Attributes:
        source_digest: of the data.
        source_images: how many the data has.
        precision: of convolutions, ``float32`` or ``bfloat16``: what ``training.precision`` meant where the run began.
    """

    source_digest: str
    source_images: int
    precision: str


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training step changes, and under which conditions."""

    networks: nn.ModuleDict
    average: nn.ModuleDict
    optimizers: Mapping[str, torch.optim.Optimizer]
    counters: Counters
    conditions: Conditions

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
            self.networks.load_state_dict(below(tensors, "networks."))
            self.average.load_state_dict(below(tensors, "average."))
        except RuntimeError as err:
            raise CheckpointError(f"the checkpoint holds other networks than the spec builds: {err}") from err
        for phase, optimizer in self.optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for name, tensor in below(tensors, f"optimizers.{phase}.").items():
                index, slot = name.split(".", 1)
                slots.setdefault(int(index), {})[slot] = tensor
            # Learning rates and betas follow the schedule; only the moments come from the checkpoint.
            optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
