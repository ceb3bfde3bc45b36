"""Adversarial losses, exchangeable by name, and the penalties on a discriminator's gradient.

Each loss maps the discriminator's scores of pairs of real and generated images, [N] each, to one mean loss per player. The
penalties look at derivatives by pixels, so whatever stands between pixels and scores has to be differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of both players.

    Attributes:
        discriminator: scores of real and generated images to the discriminator's loss.
        generator: the same to the generator's; scores of real images are None unless ``pairs``.
        pairs: the generator's loss looks at real images too.
        anchored: score 0 means "undecided"; otherwise only differences of scores have a meaning, in a balanced game at least.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    pairs: bool
    anchored: bool


def _relativistic_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    assert real is not None
    return F.softplus(-(fake - real)).mean()


LOSSES: dict[str, AdversarialLoss] = {
    # Relativistic pairing (Jolicoeur-Martineau 2018; Huang et al. 2024, eq. 3): every fake is compared with one real.
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(-(real - fake)).mean(),
        generator=_relativistic_generator,
        pairs=True,
        anchored=False,
    ),
    # Non-saturating (Goodfellow et al. 2014).
    "non_saturating": AdversarialLoss(
        discriminator=lambda real, fake: (F.softplus(-real) + F.softplus(fake)).mean(),
        generator=lambda _real, fake: F.softplus(-fake).mean(),
        pairs=False,
        anchored=True,
    ),
    # Hinge (Lim and Ye 2017). Between its margins -1 and 1, where a balanced game is played, adding a number to all scores
    # changes nothing.
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: (F.relu(1.0 - real) + F.relu(1.0 + fake)).mean(),
        generator=lambda _real, fake: -fake.mean(),
        pairs=False,
        anchored=False,
    ),
    # Wasserstein (Arjovsky et al. 2017); it needs a penalty, or the scores grow without bound.
    "wasserstein": AdversarialLoss(
        discriminator=lambda real, fake: (fake - real).mean(),
        generator=lambda _real, fake: -fake.mean(),
        pairs=False,
        anchored=False,
    ),
}


def pixel_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """The derivative of each score by the pixels behind it, float32 [N, C, H, W], itself differentiable.

    Args:
        scores: [N], or [N / pac] where packs of neighbours share a score.
        images: [N, C, H, W], a leaf that requires gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.float()


def squared_norms(gradient: Tensor, num_scores: int) -> Tensor:
    """Squared norm of the gradient of each score, [num_scores]; a pack's members count together."""
    return gradient.square().reshape(num_scores, -1).sum(1)


def one_centred(squared: Tensor) -> Tensor:
    """(|gradient| - 1)^2, mean, of squared norms [N] (Gulrajani et al. 2017, "Improved training of Wasserstein GANs")."""
    # The root has no derivative at 0.
    return ((squared + 1e-12).sqrt() - 1.0).square().mean()


def interpolated(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Images on the lines between real and generated ones, [N, C, H, W], at ``share`` [N] in [0, 1), as a new leaf."""
    share = share[:, None, None, None]
    return (share * real + (1.0 - share) * fake).detach().requires_grad_()
