"""The few collective operations of data-parallel training, exact for uneven shares of a batch.

The sum of gradients is `genworker.training.gradients`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class WorkerGroup:
    """This worker's place among those that share every global batch.

    Attributes:
        rank: in [0, world_size).
        world_size: 1 means that no process group is needed.
        share: this worker's part of a global batch, n_local / batch_size; the shares of all workers sum to 1.
    """

    rank: int
    world_size: int
    share: float
    _waited: float = field(default=0.0, init=False)
    _gpu_waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list, init=False)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the global batch of a mean over each worker's part, detached."""
        value = value.detach() * self.share
        if self.world_size > 1 and value.is_cuda:
            # The GPU waits while the host goes on, so only the GPU can tell for how long.
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begun.record()
            dist.all_reduce(value)
            ended.record()
            self._gpu_waits.append((begun, ended))
        elif self.world_size > 1:
            began = time.perf_counter()
            dist.all_reduce(value)
            self._waited += time.perf_counter() - began
        return value

    def take_waited(self) -> float:
        """Seconds spent in `mean` since the last call, nearly all of it waiting for slower workers; waits for the GPU."""
        for begun, ended in self._gpu_waits:
            ended.synchronize()
            self._waited += begun.elapsed_time(ended) / 1e3
        self._gpu_waits.clear()
        waited, self._waited = self._waited, 0.0
        return waited

    def from_first(self, value: int) -> int:
        """Rank 0's value, on every worker."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def gather(self, values: list[float]) -> list[list[float]]:
        """Every worker's ``values`` (equally many on each), by rank, on every worker."""
        if self.world_size == 1:
            return [values]
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        ours = torch.tensor(values, dtype=torch.float64, device=device)
        everyone = [torch.empty_like(ours) for _ in range(self.world_size)]
        dist.all_gather(everyone, ours)
        return [row.tolist() for row in everyone]
