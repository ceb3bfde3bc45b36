"""What the steps between two reports gave: the means of their scalars, and the time that each part of them took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genworker.training.record import finite


@dataclass
class Meter:
    """Averages since the last report, and the time they took.

    ``images`` are those of this process, which ``seconds`` and ``started`` are of too; ``images_before`` those between the last
    report and the stop that this process went on from, which averages are of as well. ``seconds`` holds the time of each part
    of a step. A GPU's work is queued in the forward pass and waited for in the backward pass, so there only the sum of both is
    meaningful.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    images_before: int = 0
    waited_before: float = 0.0

    def add(self, name: str, value: Tensor) -> None:
        """Take one value of a scalar."""
        before = self.sums.get(name, torch.zeros(()))
        self.sums[name] = before.to(value.device) + value.detach().float()
        self.counts[name] = self.counts.get(name, 0) + 1

    def expect(self, names: Iterable[str]) -> None:
        """Know these scalars although a step gave none; their mean is NaN unless other steps do."""
        for name in names:
            self.sums.setdefault(name, torch.zeros(()))
            self.counts.setdefault(name, 0)

    def averages(self) -> dict[str, float]:
        """The mean of each scalar since the last report."""
        return {
            name: float(total) / self.counts[name] if self.counts[name] else math.nan
            for name, total in self.sums.items()
        }

    def dump(self, share: float, gather: Callable[[list[float]], list[list[float]]]) -> dict[str, Any]:
        """What a resumed run has to know of the way to its next report, as JSON: all ranks call it, all get the same.

        Args:
            share: this rank's part of a batch.
            gather: gives every rank's numbers to every rank, by rank.
        """
        names = sorted(self.sums)
        rows = gather([share, *(float(self.sums[name]) for name in names)])
        return {
            "images": self.images_before + self.images,
            "counts": {name: self.counts[name] for name in names},
            "sums": finite(rows),
        }

    def load(self, state: Mapping[str, Any], rank: int, world_size: int) -> None:
        """Go on from what `dump` gave; an empty mapping changes nothing.

        As many ranks as before go on from their own sums, bit for bit, and any other number from the mean of all.
        """
        if not state:
            return
        rows = [[math.nan if value is None else value for value in row] for row in state["sums"]]
        if len(rows) == world_size:
            totals = rows[rank][1:]
        else:
            totals = [sum(row[0] * row[column] for row in rows) for column in range(1, len(rows[0]))]
        self.images_before, self.counts = int(state["images"]), dict(state["counts"])
        self.sums = {name: torch.tensor(total) for name, total in zip(sorted(self.counts), totals, strict=True)}

    def spent(self, part: str, since: float) -> float:
        """Add the time since ``since`` to ``part``; returns the time now."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        return now

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count some of the time of one part as another's."""
        self.seconds[source] -= seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds
