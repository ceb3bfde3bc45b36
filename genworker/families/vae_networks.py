"""Encoder and decoder of a VAE with one or two levels of latents, convolutional or of gated linear layers.

Two levels (Tomczak & Welling 2018): q(z2 | x) q(z1 | x, z2) and p(z2) p(z1 | z2) p(x | z1, z2). **z** [N, latent_dim] holds all
levels side by side, the top one first. Means and log variances are float32 under autocast too: a KL term or a density
from eight bits of a log variance is wrong by nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.families.blocks import ClassEmbedding, DownStack, UpStack
from genworker.families.layers import initialise
from genworker.families.likelihoods import PixelLikelihood
from genworker.schema import ImageSchema

if TYPE_CHECKING:
    from genworker.families.vae_config import VAEConfig

_LOGVAR_RANGE = (-12.0, 6.0)


class GatedLinear(nn.Module):
    """a(x) * sigmoid(b(x)), both linear (Dauphin et al. 2017)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.both = initialise(nn.Linear(in_features, 2 * out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_features] to [N, out_features]."""
        return F.glu(self.both(x), dim=1)


def gated_mlp(in_features: int, width: int, depth: int) -> nn.Sequential:
    """``depth`` gated layers of ``width``."""
    return nn.Sequential(*(GatedLinear(width if index else in_features, width) for index in range(depth)))


class GaussianHead(nn.Module):
    """Features to mean and log variance, in the precision of its weights."""

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * dim)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, in_features] to mean and log variance, [N, dim] each."""
        with torch.autocast(features.device.type, enabled=False):
            mean, logvar = self.linear(features.to(self.linear.weight.dtype)).chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)


class VAEEncoder(nn.Module):
    """Images and labels to the parameters of q(z | x)."""

    def __init__(self, config: VAEConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        self.level_dims = config.level_dims
        self.trunk: nn.Module
        if config.network == "conv":
            features = 4 * config.latent_dim
            self.trunk = nn.Sequential(
                DownStack(schema.channels, schema.height, schema.width, features, config.encoder), nn.LeakyReLU(0.2)
            )
        else:
            features = config.mlp_width
            num_inputs = schema.channels * schema.height * schema.width
            self.trunk = nn.Sequential(nn.Flatten(), gated_mlp(num_inputs, features, config.mlp_depth))
        self.classes = ClassEmbedding(num_classes, config.embedding_dim)
        features += self.classes.features
        self.end = GaussianHead(features, self.level_dims[0])
        if config.levels == 2:
            self.joint = GatedLinear(features + self.level_dims[0], config.mlp_width)
            self.lower_end = GaussianHead(config.mlp_width, self.level_dims[1])

    def features(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Map images [N, C, H, W] to what both levels are told by, [N, F]."""
        features: Tensor = self.classes(self.trunk(images), labels)
        return features

    def top(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the top level (the only one of a model of one level), [N, level_dims[0]] each."""
        moments: tuple[Tensor, Tensor] = self.end(features)
        return moments

    def lower(self, features: Tensor, z_top: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the lower level, [N, level_dims[1]] each."""
        moments: tuple[Tensor, Tensor] = self.lower_end(self.joint(torch.cat([features, z_top.to(features.dtype)], 1)))
        return moments

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map images [N, C, H, W] to the `moments` of their `features`."""
        return self.moments(self.features(images, labels))

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [N, F] to mean and log variance, [N, latent_dim] each; the lower level's at the top's mean."""
        mean, logvar = self.top(features)
        if len(self.level_dims) == 1:
            return mean, logvar
        lower_mean, lower_logvar = self.lower(features, mean)
        return torch.cat([mean, lower_mean], 1), torch.cat([logvar, lower_logvar], 1)


class VAEDecoder(nn.Module):
    """Latents and labels to the parameters and the mean image of p(x | z); of two levels, also p(z1 | z2)."""

    def __init__(self, config: VAEConfig, schema: ImageSchema, num_classes: int, likelihood: PixelLikelihood) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.level_dims = config.level_dims
        self.likelihood = likelihood
        self.image_size = (schema.height, schema.width)
        self.classes = ClassEmbedding(num_classes, config.embedding_dim)
        channels, features = likelihood.parameter_channels, config.latent_dim + self.classes.features
        self.stack: nn.Module
        if config.network == "conv":
            self.stack = UpStack(features, channels, schema.height, schema.width, config.decoder)
        else:
            num_outputs = channels * schema.height * schema.width
            self.stack = nn.Sequential(
                gated_mlp(features, config.mlp_width, config.mlp_depth),
                initialise(nn.Linear(config.mlp_width, num_outputs), 0.5),
                nn.Unflatten(1, (channels, schema.height, schema.width)),
            )
        if config.levels == 2:
            self.lower_prior_trunk = gated_mlp(
                self.level_dims[0] + self.classes.features, config.mlp_width, config.mlp_depth
            )
            self.lower_prior_end = GaussianHead(config.mlp_width, self.level_dims[1])

    def lower_prior(self, z_top: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of p(z1 | z2), [N, level_dims[1]] each."""
        moments: tuple[Tensor, Tensor] = self.lower_prior_end(self.lower_prior_trunk(self.classes(z_top, labels)))
        return moments

    def parameters_of(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim] to what the likelihood needs, [N, P, H, W]."""
        parameters: Tensor = self.stack(self.classes(z, labels))
        return parameters

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim], labels [N] to mean images [N, C, H, W] in [-1, 1]."""
        return self.likelihood.mean(self.parameters_of(z, labels))


class VAESampler(nn.Module):
    """Standard normal latents and labels to mean images: a map to the top level, then the decoder."""

    def __init__(self, top: nn.Module, decoder: VAEDecoder) -> None:
        super().__init__()
        self.latent_dim = decoder.latent_dim
        self.top = top
        self.decoder = decoder

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim], labels [N] to images [N, C, H, W] in [-1, 1]."""
        level_dims = self.decoder.level_dims
        z_top: Tensor = self.top(z[:, : level_dims[0]], labels)
        if len(level_dims) == 2:
            mean, logvar = self.decoder.lower_prior(z_top, labels)
            z = torch.cat([z_top, mean + torch.exp(0.5 * logvar) * z[:, level_dims[0] :]], 1)
        else:
            z = z_top
        images: Tensor = self.decoder(z, labels)
        return images
