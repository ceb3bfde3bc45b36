"""How a GAN's game goes: numbers that tell a balanced one from a lost one, and the bands that they keep to.

In: a discriminator's scores and penalties. Out: metrics, the same for any number of workers, and what the watchdog is to
expect of them. Losses say little here: they stay flat while pictures get better, and while they do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genworker.families.base import Band, Losses, StepContext
from genworker.families.r3gan_config import R3GANConfig


def signs(real: Tensor, fake: Tensor, ctx: StepContext, *, anchored: bool) -> Losses:
    """How sure a discriminator is, from scores [N] of real and generated images.

    ``real_sign`` is r_t = E[sign D(real)] (Karras et al. 2020). Where only differences of scores mean something, scores are
    measured from the middle between the two means of the global batch. ``pair_sign`` is E[sign(D(real) - D(fake))].
    """
    real, fake = real.detach(), fake.detach()
    middle: Tensor | float = 0.0
    if not anchored:
        middle = ctx.global_mean(torch.stack([real.mean(), fake.mean()])).mean()
    return {"real_sign": (real - middle).sign().mean(), "pair_sign": (real - fake).sign().mean()}


def balance(r1: Tensor, r2: Tensor, ctx: StepContext) -> Tensor:
    """log2 of the ratio of gradient norms at generated and at real images, from the mean squared norms R2 and R1."""
    both = ctx.global_mean(torch.stack([r1.detach(), r2.detach()])).clamp(min=1e-20).log2()
    return 0.5 * (both[1] - both[0])


def held_out_gap(seen: Tensor, unseen: Tensor) -> float:
    """Difference of the mean scores of training and of held-out images, in standard deviations of scores within each.

    0 for a discriminator that knows no image by heart; with a few hundred images chance alone gives about 0.1.
    """
    spread = (seen.var(unbiased=False) + unseen.var(unbiased=False)).div(2).sqrt().clamp(min=1e-8)
    return float((seen.mean() - unseen.mean()) / spread)


def bands(config: R3GANConfig) -> tuple[Band, ...]:
    """What the watchdog expects of a run of ``config``."""
    del config
    return ()
