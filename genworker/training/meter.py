"""What the steps between two reports gave: the means of their scalars, and the time that each part of them took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Meter:
    """Averages since the last report, and the time they took.

    ``seconds`` holds the time of each part of a step. A GPU's work is queued in the forward pass and waited for in the backward
    pass, so there only the sum of both is meaningful.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited_before: float = 0.0

    def add(self, name: str, value: Tensor) -> None:
        """Take one value of a scalar."""
        self.sums[name] = self.sums.get(name, torch.zeros_like(value, dtype=torch.float32)) + value.detach().float()
        self.counts[name] = self.counts.get(name, 0) + 1

    def averages(self) -> dict[str, float]:
        """The mean of each scalar since this meter was made."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def spent(self, part: str, since: float) -> float:
        """Add the time since ``since`` to ``part``; returns the time now."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        return now

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count some of the time of one part as another's."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds
