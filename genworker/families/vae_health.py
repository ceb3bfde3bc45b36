"""Posterior collapse of a VAE, measured on a few hundred images while it trains.

In: networks and images. Out: how many latents are in use, what each tells about an image, and the bands outside which the
watchdog raises an alarm. No gradients, no collectives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genworker.families.base import Band, Measures, Networks
from genworker.families.priors import StandardPrior, gaussian_kl
from genworker.families.vae_bound import decoder_of, encoder_of

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a latent is in use when Var_x(E[q(z|x)]) exceeds this
MIN_ACTIVE_SHARE = 0.2  # of all latents; fewer in use is a collapse
MIN_INFORMATION_SHARE = 0.9  # healthy models reach 1.0
_WARM = 0.2  # share of the run after which latents that an image needs are in use


@torch.no_grad()
def posterior_measures(networks: Networks, features: Tensor, labels: Tensor | None, noise: Tensor) -> Measures:
    """Measure how much the latents tell.

    Args:
        networks: of the VAE.
        features: of N images, [N, F], from the encoder.
        labels: int64 [N], or None for an unconditional model.
        noise: standard normal float32 [N, latent_dim].

    Returns:
        ``active_units`` of all levels, of two levels also ``active_units_top``; ``kl_per_latent`` in nats;
        `information_share`.
    """
    encoder = encoder_of(networks)
    standard, dims = isinstance(networks["prior"], StandardPrior), encoder.level_dims
    mean, logvar = encoder.moments(features)
    mean, logvar = mean.float(), logvar.float()
    spread = mean.var(0, correction=0)
    in_all = spread + logvar.exp().mean(0)  # variance of the aggregate posterior
    # Only N(0, I) fixes the scale of the latents; under a learned prior the threshold is relative to theirs.
    scale = torch.ones_like(in_all) if standard else in_all
    # A learned prior has no single latents: their KL is from the normal distribution of the aggregate posterior's moments.
    to_mean, to_logvar = (0.0, 0.0) if standard else (mean.mean(0), in_all.log())
    kl = gaussian_kl(mean, logvar, to_mean, to_logvar).mean(0)
    measures: Measures = {}
    if len(dims) == 2:
        scale, kl = scale.clone(), kl.clone()
        scale[dims[0] :] = in_all[dims[0] :]
        prior_mean, prior_logvar = decoder_of(networks).lower_prior(mean[:, : dims[0]], labels)
        kl[dims[0] :] = gaussian_kl(mean[:, dims[0] :], logvar[:, dims[0] :], prior_mean, prior_logvar).mean(0)
    active = spread > ACTIVE_UNIT_VARIANCE * scale
    if len(dims) == 2:
        measures["active_units_top"] = float(active[: dims[0]].sum())
    measures["active_units"] = float(active.sum())
    measures["kl_per_latent"] = [float(value) for value in kl]
    measures["information_share"] = information_share(mean, logvar, noise)
    return measures


@torch.no_grad()
def information_share(mean: Tensor, logvar: Tensor, noise: Tensor) -> float:
    """How well latents single out the image that they were drawn for among N images, in [0, 1].

    The mutual information of image and latents on these images (Hoffman & Johnson, "ELBO surgery", 2016) over its largest
    value, log N. No prior enters, so it compares models of any prior, and free bits do not hide a collapse from it.

    Args:
        mean: of q(z | x), float32 [N, D].
        logvar: its log variance, float32 [N, D].
        noise: standard normal float32 [N, D].
    """
    mean, logvar = mean.double(), logvar.double()
    z = mean + torch.exp(0.5 * logvar) * noise.double()
    precision = torch.exp(-logvar)
    constant = (mean.square() * precision + logvar).sum(1)
    log_q = -0.5 * (
        z.square() @ precision.T - 2.0 * z @ (mean * precision).T + constant
    )  # [draw, image] up to a constant
    share = 1.0 + torch.log_softmax(log_q, 1).diagonal().mean() / math.log(max(2, len(mean)))
    return float(share.clamp(0.0, 1.0))


def collapse_bands(latent_dim: int) -> tuple[Band, ...]:
    """What the watchdog looks at in a VAE."""
    advice = "lower family.beta to 1, raise family.kl_warmup or family.free_bits, or take a smaller family.latent_dim"
    return (
        Band(
            "active_units",
            low=max(1.0, math.ceil(MIN_ACTIVE_SHARE * latent_dim)),
            high=None,
            meaning=f"the posterior has collapsed: so few of the {latent_dim} latents still tell anything about an image, and "
            f"the decoder ignores the others; {advice}",
            from_progress=_WARM,
        ),
        # Free bits keep every latent a little active, so that the count alone does not show every collapse.
        Band(
            "information_share",
            low=MIN_INFORMATION_SHARE,
            high=None,
            meaning=f"the posterior has collapsed: an image's latents do not single it out among others; {advice}",
            from_progress=_WARM,
        ),
        Band(
            "elbo.negative_elbo",
            low=None,
            high=None,
            meaning="the bound is not a finite number; lower family.lr or set training.precision float32",
            action="rollback",
            from_progress=0.0,
        ),
    )
