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
    """What the watchdog expects of a run of ``config``.

    The limits lie between what healthy runs on Fashion-MNIST showed (pair_sign up to 0.985, penalty_balance within 0.1,
    held_out_gap below 0.2, the relativistic generator's loss up to 3.4 at the start and 2 later) and what lost ones did; a
    spec's ``watchdog.bands`` replaces them. What the limits of single losses lie between stands beside them: the largest value
    that three reports in a row kept to, in small runs of one to three seeds.
    """
    # A WGAN-GP critic, which is several steps ahead, tells all pairs apart at first and still shows the way. pair_sign in the
    # second half: healthy 0.95 to 0.97; learning rate of the critic or of the generator x 20: 1.
    critic = config.gp is not None
    expected = [
        Band(
            "discriminator.pair_sign",
            0.0,
            0.99,
            "above, the discriminator tells every pair of a real and a generated image apart and the generator learns little: "
            "lower family.lr or family.discriminator_lr_scale, raise family.gamma, or widen the generator; below, it cannot "
            "tell them at all: lower family.gamma or widen the discriminator",
            from_progress=0.5 if critic else 0.2,  # at first real and generated images have nothing in common
        ),
        Band(
            "discriminator.real_sign",
            -0.5,
            0.98,
            "above, the discriminator is sure of every training image: bring more data, or switch family.augment on",
        ),
        Band(
            "discriminator.held_out_gap",
            None,
            0.6,
            "the discriminator scores its training images above images that it never saw, by so many standard deviations: it "
            "learns them by heart; bring more data, or switch family.augment on",
        ),
        Band(
            "generator.grad_norm",
            1e-5,
            None,
            "the generator gets no gradient any more: the discriminator has become constant where images are generated; lower "
            "family.gamma, or begin again with a lower family.lr",
        ),
    ]
    if config.loss in {"relativistic", "non_saturating"}:
        expected.append(
            Band(
                "generator.loss",
                None,
                5.0,
                "the discriminator prefers real images by e^5 to 1, far ahead of the generator, and gives it no direction: "
                "raise family.gamma (is r1 or r2 off?), or lower family.lr or family.discriminator_lr_scale",
                from_progress=0.1,
            )
        )
    if config.loss == "hinge":
        # Healthy 0.74 to 0.78, with R1 alone or gamma 0.2 throughout 0.95 and 1.03, without penalties 1.06 and 1.09 (not lost
        # at this length). Learning rate of the discriminator x 20: 1.6 and 1.7, without penalties 8.4; of the generator: 2.2
        # and 2.6.
        expected.append(
            Band(
                "generator.loss",
                None,
                1.3,
                "the discriminator scores generated images far below -1, where a hinge loss asks no more of it, and is far "
                "ahead of the generator: raise family.gamma (is r1 or r2 off?), or lower family.lr or "
                "family.discriminator_lr_scale",
                from_progress=0.1,
            )
        )
    if config.loss == "wasserstein" and not critic:
        # Scores have no scale of their own, but what the penalties cost has one: healthy 4.4 to 4.9, and 3.5 to 4.5 with R1
        # alone or gamma from 0.2 to 10. Learning rate of the discriminator x 20: 18 and 38, of the generator: 132.
        expected.append(
            Band(
                "discriminator.penalty",
                None,
                10.0,
                "the critic is too steep, as its gradient penalties show, and the game swings instead of settling: "
                "lower family.lr or family.discriminator_lr_scale, or raise family.gamma",
                from_progress=0.1,
            )
        )
    if config.r1 or config.r2:
        expected.append(
            Band(
                "discriminator.penalty_balance",
                -0.75,
                0.75,
                "log2 of the discriminator's gradient norm at generated over that at real images is far from 0: it is steep "
                "on one side only; switch both family.r1 and family.r2 on, or raise family.gamma",
            )
        )
    if critic:
        expected.append(
            Band(
                "discriminator.gradient_norm",
                0.3,
                3.0,
                "a Wasserstein critic's gradient between real and generated images has norm 1, so the scores are no distances: "
                "raise family.gp or family.discriminator_steps, or lower family.lr",
            )
        )
    if config.augment is not None and config.augment.schedule is None:
        expected.append(
            Band(
                "discriminator.augment_p",
                None,
                0.99 * config.augment.p_max,
                "augmentation is as strong as family.augment.p_max lets it be and the discriminator still knows its training "
                "images: bring more data, or stop training earlier",
            )
        )
    return tuple(expected)
