"""What a loss may ask of the training loop, answered for one worker in the middle of a run, by the numbers of production."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genworker.sampling.latents import normals, uniforms


@dataclass(frozen=True)
class Context:
    """A training step of one worker."""

    num_draws: int
    progress: float = 0.5

    @property
    def batch_images(self) -> int:
        return self.num_draws

    def noise(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(normals(0, 16 + stream, 0, self.num_draws, dim))

    def uniform(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(uniforms(0, 16 + stream, 0, self.num_draws, dim))

    def global_mean(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach()
