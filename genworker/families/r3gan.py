"""R3GAN: a GAN that trains without tricks, by a loss with provable local convergence.

Relativistic pairing loss with zero-centred gradient penalties on real (R1) and generated (R2) images in every step, no
normalisation, Adam without momentum, weight average: Huang et al., "The GAN is dead; long live the GAN! A modern GAN
baseline", NeurIPS 2024, arXiv:2501.05441. Written from the paper. Other losses, augmentation and packs can be switched in.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from genworker.families import gan_health, gan_losses
from genworker.families.augment import NUM_UNIFORMS, Augment
from genworker.families.base import (
    Band,
    Batch,
    FamilyConfig,
    Generator,
    Losses,
    Measures,
    Networks,
    Phase,
    StepContext,
)
from genworker.families.r3gan_config import R3GANConfig
from genworker.families.r3gan_networks import R3GANDiscriminator, R3GANGenerator
from genworker.schema import ImageSchema

# Streams of random numbers within a phase.
_LATENTS, _AUGMENT_REAL, _AUGMENT_FAKE, _INTERPOLATE = 0, 1, 2, 3


class R3GAN:
    """The family; see `genworker.families.base.Family`."""

    Config: ClassVar[type[FamilyConfig]] = R3GANConfig
    served: ClassVar[tuple[str, ...]] = ("generator",)

    def __init__(self, config: R3GANConfig, schema: ImageSchema) -> None:
        self.config = config
        self.schema = schema
        self.num_classes = schema.num_classes if config.conditional else 0
        self._loss = gan_losses.LOSSES[config.loss]

    def build(self) -> Networks:
        """Make ``generator`` and ``discriminator``, and ``augment``, which has no weights, where that is on.

        Raises:
            UsageError: a network's stages do not suit the size of the images.
        """
        networks: dict[str, nn.Module] = {
            "generator": R3GANGenerator(self.config, self.schema, self.num_classes),
            "discriminator": R3GANDiscriminator(self.config, self.schema, self.num_classes),
        }
        if self.config.augment is not None:
            networks["augment"] = Augment(self.config.augment)
        return nn.ModuleDict(networks)

    def phases(self) -> tuple[Phase, ...]:
        """One discriminator step, then one generator step with fresh latents."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        judges = ("discriminator",) if self.config.augment is None else ("discriminator", "augment")
        scale, every = self.config.discriminator_lr_scale, self.config.discriminator_steps
        return (
            Phase("discriminator", judges, self._discriminator_loss, beta1=beta1, beta2=beta2, lr_scale=scale),
            Phase("generator", ("generator",), self._generator_loss, beta1=beta1, beta2=beta2, every=every),
        )

    def generator(self, networks: Networks) -> Generator:
        """The network called ``generator``."""
        network = networks["generator"]
        assert isinstance(network, R3GANGenerator)
        return network

    def _labels(self, batch: Batch) -> Tensor | None:
        return batch.labels if self.num_classes else None

    def _seen(self, networks: Networks, images: Tensor, ctx: StepContext, stream: int) -> Tensor:
        """Images as the discriminator is shown them."""
        if self.config.augment is None:
            return images
        augmented: Tensor = networks["augment"](images, ctx.uniform(stream, NUM_UNIFORMS))
        return augmented

    def _discriminator_loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        config, labels = self.config, self._labels(batch)
        augment = networks["augment"] if config.augment is not None else None
        if isinstance(augment, Augment):
            augment.follow_schedule(ctx.progress)
        with torch.no_grad():
            fakes = networks["generator"](ctx.noise(_LATENTS, config.latent_dim), labels).float()
        # Penalties are on derivatives by the images as they were before augmentation.
        real_images = batch.images.detach().requires_grad_()
        fake_images = fakes.requires_grad_()
        # One forward for both halves: the networks are norm-free, so halves do not influence each other.
        shown = torch.cat(
            [
                self._seen(networks, real_images, ctx, _AUGMENT_REAL),
                self._seen(networks, fake_images, ctx, _AUGMENT_FAKE),
            ]
        )
        both = torch.cat([labels, labels]) if labels is not None else None
        real, fake = networks["discriminator"](shown, both).float().chunk(2)
        loss = self._loss.discriminator(real, fake)
        losses: Losses = {"adversarial": loss}
        if config.gp is not None:
            between = gan_losses.interpolated(batch.images, fakes, self._shares(ctx))
            scores = networks["discriminator"](self._seen(networks, between, ctx, _AUGMENT_REAL), labels).float()
            squared = gan_losses.squared_norms(gan_losses.pixel_gradient(scores, between), len(scores))
            losses["gp"] = gan_losses.one_centred(squared)
            losses["gradient_norm"] = squared.detach().sqrt().mean()
            loss = loss + config.gp * losses["gp"]
        if config.r1 or config.r2:
            at_real, at_fake = torch.autograd.grad(
                real.sum() + fake.sum(), [real_images, fake_images], create_graph=True
            )
            losses["r1"] = gan_losses.squared_norms(at_real.float(), len(real)).mean()
            losses["r2"] = gan_losses.squared_norms(at_fake.float(), len(fake)).mean()
            gamma = config.gamma.at(ctx.progress)
            losses["penalty"] = gamma / 2 * (config.r1 * losses["r1"] + config.r2 * losses["r2"])
            loss = loss + losses["penalty"]
        losses |= gan_health.signs(real, fake, ctx, anchored=self._loss.anchored)
        if "r1" in losses:
            losses["penalty_balance"] = gan_health.balance(losses["r1"], losses["r2"], ctx)
        if isinstance(augment, Augment):
            augment.adapt(ctx.global_mean(losses["real_sign"]), ctx.batch_images)
            losses["augment_p"] = augment.p.clone()
        return losses | {"loss": loss}

    def _shares(self, ctx: StepContext) -> Tensor:
        """Where between real and generated each image of a WGAN-GP penalty lies; one place for a whole pack."""
        shares = ctx.uniform(_INTERPOLATE, 1)[:, 0]
        return shares[:: self.config.pac].repeat_interleave(self.config.pac)

    def _generator_loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        labels, discriminator = self._labels(batch), networks["discriminator"]
        fakes = networks["generator"](ctx.noise(_LATENTS, self.config.latent_dim), labels)
        fake = discriminator(self._seen(networks, fakes, ctx, _AUGMENT_FAKE), labels).float()
        real = None
        if self._loss.pairs:
            with torch.no_grad():
                real = discriminator(self._seen(networks, batch.images, ctx, _AUGMENT_REAL), labels).float()
        return {"loss": self._loss.generator(real, fake)}

    def examine(self, networks: Networks, train: Batch, held_out: Batch | None, ctx: StepContext) -> Measures:
        """How much higher the discriminator scores its training images than images it never saw."""
        del ctx
        if held_out is None:
            return {}
        discriminator, pac = networks["discriminator"], self.config.pac
        scores = []
        for batch in (train, held_out):
            whole = len(batch.images) // pac * pac
            labels = self._labels(batch)
            scores.append(discriminator(batch.images[:whole], None if labels is None else labels[:whole]).float())
        return {"discriminator.held_out_gap": gan_health.held_out_gap(*scores)}

    @property
    def scoring(self) -> tuple[str, ...]:
        """The discriminator, unless it judges packs of images, whose score is no single image's."""
        return ("discriminator",) if self.config.pac == 1 else ()

    def score(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """The discriminator's output on images as they are, without augmentation; see `genworker.families.base.Scorer`."""
        scores: Tensor = networks["discriminator"](images, labels if self.num_classes else None)
        return scores.float()

    def bands(self) -> tuple[Band, ...]:
        """What a healthy game of the two players looks like."""
        return gan_health.bands(self.config)
