"""R3GAN: a GAN that trains without tricks, by a loss with provable local convergence.

Relativistic pairing loss with zero-centred gradient penalties on real (R1) and generated (R2) images in every step, no
normalisation, Adam without momentum, weight average: Huang et al., "The GAN is dead; long live the GAN! A modern GAN
baseline", NeurIPS 2024, arXiv:2501.05441. Written from the paper. Conditional models append class features to z and project
onto class features in the discriminator (Miyato and Koyama 2018).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genworker.families.base import (
    Band,
    Batch,
    Cosine,
    FamilyConfig,
    Generator,
    Losses,
    Measures,
    Networks,
    Phase,
    StepContext,
)
from genworker.families.blocks import ClassEmbedding, DownStack, StackConfig, UpStack
from genworker.families.gan_losses import LOSSES
from genworker.schema import ImageSchema

_STREAM_D, _STREAM_G = 0, 1  # noise of the two phases of one step


class R3GANConfig(FamilyConfig):
    """The ``family`` part of a spec, for r3gan. Defaults suit small grey images on a CPU."""

    name: Literal["r3gan"] = "r3gan"
    lr: Cosine = Cosine(start=1e-3, end=1e-4)
    generator: StackConfig = StackConfig()
    discriminator: StackConfig = StackConfig()
    embedding_dim: Annotated[int, Field(ge=1)] = Field(32, description="class features")
    output: Literal["tanh", "linear"] = Field(
        "tanh", description="tanh suits images with much pure black or white; the paper's generator is linear"
    )
    loss: Literal["relativistic", "non_saturating", "hinge"] = "relativistic"
    r1: bool = Field(True, description="penalise the discriminator's gradient at real images")
    r2: bool = Field(True, description="penalise it at generated images")
    gamma: Cosine = Field(Cosine(start=1.0, end=0.1), description="weight of both penalties; grows with resolution")
    beta2: Cosine = Cosine(start=0.9, end=0.99)


class R3GANGenerator(nn.Module):
    """Latents and labels to images."""

    def __init__(self, config: R3GANConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.squash = config.output == "tanh"
        self.classes = ClassEmbedding(num_classes, config.embedding_dim)
        self.stack = UpStack(
            config.latent_dim + self.classes.features, schema.channels, schema.height, schema.width, config.generator
        )

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim], labels [N] to images [N, C, H, W]."""
        images: Tensor = self.stack(self.classes(z, labels))
        return torch.tanh(images) if self.squash else images


class R3GANDiscriminator(nn.Module):
    """Images and labels to one realness score each."""

    def __init__(self, config: R3GANConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        features = config.embedding_dim if num_classes else 1
        self.stack = DownStack(schema.channels, schema.height, schema.width, features, config.discriminator)
        self.table = nn.Parameter(torch.randn(num_classes, features)) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Map images [N, C, H, W], labels [N] to scores [N]."""
        features: Tensor = self.stack(images)
        if self.table is None:
            return features[:, 0]
        if labels is None:
            raise ValueError("this model is conditional: labels are needed")
        return (features * self.table[labels]).sum(1) / math.sqrt(self.table.shape[1])


class R3GAN:
    """The family; see `genworker.families.base.Family`."""

    Config: ClassVar[type[FamilyConfig]] = R3GANConfig
    served: ClassVar[tuple[str, ...]] = ("generator",)

    def __init__(self, config: R3GANConfig, schema: ImageSchema) -> None:
        self.config = config
        self.schema = schema
        self.num_classes = schema.num_classes if config.conditional else 0
        self._loss = LOSSES[config.loss]

    def build(self) -> Networks:
        """Make ``generator`` and ``discriminator``."""
        return nn.ModuleDict(
            {
                "generator": R3GANGenerator(self.config, self.schema, self.num_classes),
                "discriminator": R3GANDiscriminator(self.config, self.schema, self.num_classes),
            }
        )

    def phases(self) -> tuple[Phase, ...]:
        """One discriminator step, then one generator step with fresh latents."""
        beta2 = self.config.beta2
        return (
            Phase("discriminator", ("discriminator",), self._discriminator_loss, beta1=0.0, beta2=beta2),
            Phase("generator", ("generator",), self._generator_loss, beta1=0.0, beta2=beta2),
        )

    def generator(self, networks: Networks) -> Generator:
        """The network called ``generator``."""
        network = networks["generator"]
        assert isinstance(network, R3GANGenerator)
        return network

    def _discriminator_loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        labels = batch.labels if self.num_classes else None
        with torch.no_grad():
            fakes = networks["generator"](ctx.noise(_STREAM_D, self.config.latent_dim), labels).float()
        # One forward for both halves: the networks are norm-free, so halves do not influence each other.
        images = torch.cat([batch.images, fakes]).requires_grad_()
        both = torch.cat([labels, labels]) if labels is not None else None
        scores = networks["discriminator"](images, both).float()
        real, fake = scores.chunk(2)
        loss = self._loss.discriminator(real, fake)
        losses: Losses = {
            "adversarial": loss,
            "real_sign": real.detach().sign().mean(),
            "pair_sign": (real - fake).detach().sign().mean(),
        }
        if self.config.r1 or self.config.r2:
            (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
            at_real, at_fake = gradient.float().square().sum((1, 2, 3)).chunk(2)
            losses["r1"], losses["r2"] = at_real.mean(), at_fake.mean()
            gamma = self.config.gamma.at(ctx.progress)
            loss = loss + gamma / 2 * (self.config.r1 * losses["r1"] + self.config.r2 * losses["r2"])
        return losses | {"loss": loss}

    def _generator_loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        labels = batch.labels if self.num_classes else None
        fakes = networks["generator"](ctx.noise(_STREAM_G, self.config.latent_dim), labels)
        fake = networks["discriminator"](fakes, labels).float()
        real = None
        if self._loss.pairs:
            with torch.no_grad():
                real = networks["discriminator"](batch.images, labels).float()
        return {"loss": self._loss.generator(real, fake)}

    def examine(self, networks: Networks, train: Batch, held_out: Batch | None, ctx: StepContext) -> Measures:
        """How much better the discriminator knows its training images than images it never saw."""
        if held_out is None:
            return {}
        discriminator = networks["discriminator"]
        seen = discriminator(train.images, train.labels if self.num_classes else None).float()
        unseen = discriminator(held_out.images, held_out.labels if self.num_classes else None).float()
        return {"discriminator.held_out_gap": float(seen.mean() - unseen.mean())}

    def bands(self) -> tuple[Band, ...]:
        """None yet."""
        return ()
