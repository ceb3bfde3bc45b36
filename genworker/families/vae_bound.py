"""Draws from q(z | x) and what follows from them: KL terms, importance weights, estimates of log p(x).

In: a VAE's networks and images. Out: nats, in float32 within a training step and float64 for estimates. Nothing here moves
a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genworker.families.base import Networks
from genworker.families.priors import (
    FlowPrior,
    StandardPrior,
    VampPrior,
    gaussian_kl,
    gaussian_log_prob,
    standard_log_prob,
)
from genworker.families.vae_networks import VAEDecoder, VAEEncoder

LogDensity = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Draw:
    """One latent per row, and the terms of the bound that do not look at pixels.

    Attributes:
        z: float32 [N, latent_dim].
        kl: KL of the posterior from the prior, float32 [N, G]: per latent where it has a closed form, else one number for
            all latents of the level, estimated by this draw.
        kl_dims: number of latents that each of the G numbers speaks for, float32 [G].
        log_ratio: log p(z) - log q(z | x), float32 [N].
    """

    z: Tensor
    kl: Tensor
    kl_dims: Tensor
    log_ratio: Tensor


def encoder_of(networks: Networks) -> VAEEncoder:
    """The encoder, with its type."""
    encoder = networks["encoder"]
    assert isinstance(encoder, VAEEncoder)
    return encoder


def decoder_of(networks: Networks) -> VAEDecoder:
    """The decoder, with its type."""
    decoder = networks["decoder"]
    assert isinstance(decoder, VAEDecoder)
    return decoder


def top_prior(networks: Networks) -> LogDensity | None:
    """Log density of the top level's prior, [N, D] to [N]; None means N(0, I), whose KL terms have a closed form.

    Encodes a vampprior's pseudo-inputs, so ask once per step.
    """
    prior = networks["prior"]
    if isinstance(prior, StandardPrior):
        return None
    if isinstance(prior, VampPrior):
        encoder = encoder_of(networks)
        images, labels = prior.pseudo_inputs()
        mean, logvar = encoder.top(encoder.features(images, labels))
        return lambda z, classes: prior.log_prob(z, classes, mean, logvar)
    assert isinstance(prior, FlowPrior)
    return prior.log_prob


def draw(networks: Networks, features: Tensor, labels: Tensor | None, noise: Tensor, prior: LogDensity | None) -> Draw:
    """Draw all levels of latents, with gradients.

    Args:
        networks: of the VAE.
        features: of the images, [N, F], from the encoder.
        labels: int64 [N], or None for an unconditional model.
        noise: standard normal float32 [N, latent_dim].
        prior: what `top_prior` gave.
    """
    encoder = encoder_of(networks)
    top_dim = encoder.level_dims[0]
    mean, logvar = encoder.top(features)
    top_noise = noise[:, :top_dim]
    z = mean + torch.exp(0.5 * logvar) * top_noise
    log_q = standard_log_prob(top_noise) - 0.5 * logvar.sum(1)
    if prior is None:
        log_p = standard_log_prob(z)
        kl, dims = gaussian_kl(mean, logvar), z.new_ones(top_dim)
    else:
        log_p = prior(z, labels)
        kl, dims = (log_q - log_p)[:, None], z.new_full((1,), float(top_dim))
    log_ratio = log_p - log_q
    if len(encoder.level_dims) == 1:
        return Draw(z, kl, dims, log_ratio)
    lower_mean, lower_logvar = encoder.lower(features, z)
    prior_mean, prior_logvar = decoder_of(networks).lower_prior(z, labels)
    lower_noise = noise[:, top_dim:]
    lower = lower_mean + torch.exp(0.5 * lower_logvar) * lower_noise
    lower_log_q = standard_log_prob(lower_noise) - 0.5 * lower_logvar.sum(1)
    return Draw(
        z=torch.cat([z, lower], 1),
        kl=torch.cat([kl, gaussian_kl(lower_mean, lower_logvar, prior_mean, prior_logvar)], 1),
        kl_dims=torch.cat([dims, z.new_ones(encoder.level_dims[1])]),
        log_ratio=log_ratio + gaussian_log_prob(lower, prior_mean, prior_logvar) - lower_log_q,
    )


def binarised(images: Tensor, uniform: Tensor) -> Tensor:
    """Pixels of -1 and 1, 1 with the probability of their brightness.

    Args:
        images: float32 [N, C, H, W] in [-1, 1].
        uniform: float32 [N, C * H * W] in [0, 1).
    """
    return torch.where(uniform.view_as(images) < (images + 1.0) / 2.0, 1.0, -1.0)


@torch.no_grad()
def log_likelihood(
    networks: Networks,
    images: Tensor,
    labels: Tensor | None,
    *,
    num_samples: int,
    chunk: int,
    seed: int,
    first: int,
    binarise: bool,
    device: torch.device | Literal["cpu"] = "cpu",
) -> Tensor:
    """Importance-weighted estimates of log p(x); see `genworker.families.base.Likelihood`.

    Image i, counted from ``first`` on, has its own counter-based generator, keyed by ``seed`` and i, and its samples are
    drawn one after the other: the estimate is the same for any ``chunk``, up to rounding.
    """
    encoder, decoder = encoder_of(networks), decoder_of(networks)
    prior = top_prior(networks)
    samples_at_once = min(num_samples, chunk)
    images_at_once = max(1, chunk // samples_at_once)
    estimates = torch.empty(len(images), dtype=torch.float64)
    for start in range(0, len(images), images_at_once):
        block = slice(start, start + images_at_once)
        observed = images[block].to(device)
        generators = [
            np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
            for index in range(first + start, first + start + len(observed))
        ]
        if binarise:
            uniform = np.stack([generator.random(observed[0].numel(), np.float32) for generator in generators])
            observed = binarised(observed, torch.from_numpy(uniform).to(device))
        classes = None if labels is None else labels[block].to(device)
        features = encoder.features(observed, classes)
        total = torch.full((len(observed),), -math.inf, dtype=torch.float64, device=device)
        for done in range(0, num_samples, samples_at_once):
            count = min(samples_at_once, num_samples - done)
            noise = np.stack(
                [generator.standard_normal((count, decoder.latent_dim), np.float32) for generator in generators]
            )
            repeated = None if classes is None else classes.repeat_interleave(count)
            drawn = draw(
                networks,
                features.repeat_interleave(count, 0),
                repeated,
                torch.from_numpy(noise).view(-1, decoder.latent_dim).to(device),
                prior,
            )
            log_pixels = decoder.likelihood.log_prob(
                decoder.parameters_of(drawn.z, repeated), observed.repeat_interleave(count, 0)
            )
            log_weights = (log_pixels.double() + drawn.log_ratio.double()).view(len(observed), count)
            total = torch.logaddexp(total, torch.logsumexp(log_weights, 1))
        estimates[block] = (total - math.log(num_samples)).cpu()
    return estimates
