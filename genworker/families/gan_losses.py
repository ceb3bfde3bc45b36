"""Adversarial losses, exchangeable by name.

Each maps the discriminator's outputs on pairs of real and generated images, [N] each, to one mean loss per player.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of both players; ``pairs`` says that the generator's loss looks at real images too."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor | None, Tensor], Tensor]
    pairs: bool


def _relativistic_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    assert real is not None
    return F.softplus(-(fake - real)).mean()


LOSSES: dict[str, AdversarialLoss] = {
    # Relativistic pairing (Jolicoeur-Martineau 2018; Huang et al. 2024, eq. 3): every fake is compared with one real.
    "relativistic": AdversarialLoss(
        discriminator=lambda real, fake: F.softplus(-(real - fake)).mean(),
        generator=_relativistic_generator,
        pairs=True,
    ),
    # Non-saturating (Goodfellow et al. 2014).
    "non_saturating": AdversarialLoss(
        discriminator=lambda real, fake: (F.softplus(-real) + F.softplus(fake)).mean(),
        generator=lambda _real, fake: F.softplus(-fake).mean(),
        pairs=False,
    ),
    # Hinge (Lim and Ye 2017).
    "hinge": AdversarialLoss(
        discriminator=lambda real, fake: (F.relu(1.0 - real) + F.relu(1.0 + fake)).mean(),
        generator=lambda _real, fake: -fake.mean(),
        pairs=False,
    ),
}
