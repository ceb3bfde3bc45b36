"""Priors of latent-variable models: densities over z that can be sampled from standard normal noise.

``standard`` is N(0, I). ``flow`` is learned with the model, conditional on the class: affine couplings (Dinh et al., "Density
estimation using Real NVP", ICLR 2017) as the prior of a VAE (Chen et al., "Variational lossy autoencoder", ICLR 2017). It
follows the aggregate posterior, so that samples come from where the decoder was trained; with N(0, I) most of a
well-fitting VAE's samples fall into holes between the training images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.families.blocks import ClassEmbedding

_MAX_LOG_SCALE = 2.0


def standard_log_prob(z: Tensor) -> Tensor:
    """Log density of N(0, I) at z [N, D], in nats, [N]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


class _Coupling(nn.Module):
    """Moves one half of z by an affine map that the other half and the class decide."""

    def __init__(self, dim: int, hidden: int, num_classes: int, embedding_dim: int, *, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        self.kept = dim - dim // 2 if swap else dim // 2
        moved = dim - self.kept
        self.classes = ClassEmbedding(num_classes, embedding_dim)
        self.first = nn.Linear(self.kept + self.classes.features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 2 * moved)
        nn.init.zeros_(self.last.weight)  # the flow starts as the identity
        nn.init.zeros_(self.last.bias)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The kept and the moved half."""
        left, right = z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]
        return (right, left) if self.swap else (left, right)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        """Undo `split`."""
        return torch.cat([moved, kept] if self.swap else [kept, moved], dim=1)

    def affine(self, kept: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log scale and shift of the moved half."""
        x = F.silu(self.first(self.classes(kept, labels)))
        log_scale, shift = self.last(F.silu(self.second(x))).chunk(2, dim=1)
        return _MAX_LOG_SCALE * torch.tanh(log_scale / _MAX_LOG_SCALE), shift


class FlowPrior(nn.Module):
    """p(z | class) by couplings of standard normal noise."""

    def __init__(
        self, dim: int, num_classes: int, *, num_couplings: int = 6, hidden: int = 96, embedding_dim: int = 16
    ) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            _Coupling(dim, hidden, num_classes, embedding_dim, swap=bool(index % 2)) for index in range(num_couplings)
        )

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Map standard normal noise [N, D] to z [N, D]."""
        z = noise
        for coupling in self.couplings:
            assert isinstance(coupling, _Coupling)
            kept, moved = coupling.split(z)
            log_scale, shift = coupling.affine(kept, labels)
            z = coupling.join(kept, moved * log_scale.exp() + shift)
        return z

    def log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Log density at z [N, D], in nats, [N]."""
        log_det = z.new_zeros(len(z))
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, _Coupling)
            kept, moved = coupling.split(z)
            log_scale, shift = coupling.affine(kept, labels)
            z = coupling.join(kept, (moved - shift) * (-log_scale).exp())
            log_det = log_det - log_scale.sum(1)
        return standard_log_prob(z) + log_det


class StandardPrior(nn.Module):
    """N(0, I), with the face of `FlowPrior`."""

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return the noise."""
        del labels
        return noise

    def log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Log density at z [N, D], in nats, [N]."""
        del labels
        return standard_log_prob(z)
