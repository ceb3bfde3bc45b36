"""Priors of latent-variable models: densities over z, most of which can be sampled from standard normal noise.

``standard`` is N(0, I). ``flow`` is learned, conditional on the class: affine couplings (Dinh et al., "Density estimation
using Real NVP", ICLR 2017) as the prior of a VAE (Chen et al., "Variational lossy autoencoder", ICLR 2017). ``vampprior`` is
the mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018). A learned
prior follows the aggregate posterior, so that samples come from where the decoder was trained; with N(0, I) most of a
well-fitting VAE's samples fall into holes between the training images. Densities are always computed in float32.
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


def gaussian_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log density of a diagonal normal at z [N, D], in nats, [N]."""
    return -0.5 * ((z - mean).square() * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(1)


def gaussian_kl(mean: Tensor, logvar: Tensor, to_mean: Tensor | float = 0.0, to_logvar: Tensor | float = 0.0) -> Tensor:
    """KL divergence of one diagonal normal from another, N(0, I) unless given, per dimension and in nats, [N, D]."""
    gap = torch.as_tensor(to_logvar, dtype=logvar.dtype, device=logvar.device)
    return 0.5 * (((mean - to_mean).square() + logvar.exp()) * torch.exp(-gap) - 1.0 - logvar + gap)


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
        with torch.autocast(z.device.type, enabled=False):
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


class VampPrior(nn.Module):
    """p(z | class), the even mixture of q(z | u) over the pseudo-inputs u of that class.

    The encoder is not part of it: whoever asks for densities encodes `pseudo_inputs` once and passes the result.
    """

    def __init__(self, num_pseudo_inputs: int, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Images in [-1, 1] before a tanh; as different from one another at first as noise is.
        self.before_tanh = nn.Parameter(0.5 * torch.randn(num_pseudo_inputs, *image_shape))

    def pseudo_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Images [K, C, H, W] in [-1, 1] and their classes, int64 [K] or None."""
        images = torch.tanh(self.before_tanh)
        return images, torch.arange(len(images), device=images.device) % self.num_classes if self.num_classes else None

    def log_prob(self, z: Tensor, labels: Tensor | None, mean: Tensor, logvar: Tensor) -> Tensor:
        """Log density at z [N, D] under the posteriors (mean, logvar), [K, D] each, of the pseudo-inputs; in nats, [N]."""
        with torch.autocast(z.device.type, enabled=False):
            precision = torch.exp(-logvar)
            # The square in the exponent, multiplied out, so that N x K x D numbers are never held.
            constant = (mean.square() * precision + logvar + math.log(2 * math.pi)).sum(1)
            squares = z.square() @ precision.T - 2.0 * z @ (mean * precision).T + constant
            log_densities = -0.5 * squares  # [N, K]
            if not self.num_classes:
                return torch.logsumexp(log_densities, 1) - math.log(len(mean))
            if labels is None:
                raise ValueError("this model is conditional: labels are needed")
            classes = torch.arange(len(mean), device=z.device) % self.num_classes
            ours = classes[None] == labels[:, None]
            return torch.logsumexp(log_densities.masked_fill(~ours, -math.inf), 1) - ours.sum(1).log()
