"""The two players of a GAN: latents and labels to images, and images and labels to scores.

No normalisation layer in either, so that an image never depends on its batch. Conditional models append class features to z
and project onto class features in the discriminator (Miyato and Koyama 2018, "cGANs with projection discriminator"). Packs of
images are judged together (Lin et al. 2018, "PacGAN: the power of two samples in generative adversarial networks").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genworker.families.blocks import ClassEmbedding, DownStack, UpStack
from genworker.families.r3gan_config import R3GANConfig
from genworker.schema import ImageSchema


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
    """Images and labels to realness scores, one per pack of ``pac`` neighbouring images."""

    def __init__(self, config: R3GANConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        self.pac = config.pac
        features = config.pac * config.embedding_dim if num_classes else 1
        self.stack = DownStack(
            config.pac * schema.channels, schema.height, schema.width, features, config.discriminator
        )
        self.table = nn.Parameter(torch.randn(num_classes, config.embedding_dim)) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Map images [N, C, H, W], labels [N] to scores [N / pac]; ``pac`` divides N."""
        packs = images.reshape(-1, self.pac * images.shape[1], *images.shape[2:])
        features: Tensor = self.stack(packs)
        if self.table is None:
            return features[:, 0]
        if labels is None:
            raise ValueError("this model is conditional: labels are needed")
        # Each member of a pack projects its own part of the features onto its own class.
        of_classes = self.table[labels].reshape(len(packs), -1)
        return (features * of_classes).sum(1) / math.sqrt(features.shape[1])
