"""VAEs of one or two levels of latents, whose bound needs no weight between its two terms.

Losses are summed over pixels and latents, never averaged. The objective is the ELBO, or the tighter bound of several
importance-weighted samples (Burda et al., "Importance weighted autoencoders", ICLR 2016). Against posterior collapse: KL
warm-up (Sonderby et al. 2016), free bits (Kingma et al. 2016) and learned priors (`genworker.families.priors`); `VAE.examine`
measures it. Where the prior is no good place to sample from, a second phase fits a flow to the aggregate posterior (Dai &
Wipf, "Diagnosing and enhancing VAE models", ICLR 2019) without touching the bound. Samples are the decoder's means.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from genworker.errors import UsageError
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
from genworker.families.likelihoods import BernoulliPixels, GaussianPixels, LogisticMixturePixels, PixelLikelihood
from genworker.families.priors import FlowPrior, StandardPrior, VampPrior
from genworker.families.vae_bound import (
    binarised,
    decoder_of,
    draw,
    encoder_of,
    log_likelihood,
    top_prior,
)
from genworker.families.vae_config import VAEConfig
from genworker.families.vae_health import collapse_bands, posterior_measures
from genworker.families.vae_networks import VAEDecoder, VAEEncoder, VAESampler
from genworker.schema import ImageSchema

_SECOND_STAGE_CLIP_NORM = 100.0
_NOISE, _PIXELS = 0, 1  # streams of random numbers


class VAE:
    """The family; see `genworker.families.base.Family`."""

    Config: ClassVar[type[FamilyConfig]] = VAEConfig
    served: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "prior", "second_stage")

    def __init__(self, config: VAEConfig, schema: ImageSchema) -> None:
        self.config = config
        self.schema = schema
        self.num_classes = schema.num_classes if config.conditional else 0
        if config.prior == "vampprior" and config.num_pseudo_inputs < self.num_classes:
            raise UsageError(
                f"family.num_pseudo_inputs {config.num_pseudo_inputs}: each of the {self.num_classes} classes needs one at "
                "least, because the prior is a mixture per class; take more, or conditional: false"
            )

    def build(self) -> Networks:
        """Make ``encoder``, ``decoder``, ``prior`` (N(0, I) has no weights) and ``second_stage`` (no weights without one)."""
        config = self.config
        top_dim = config.level_dims[0]
        prior: nn.Module = StandardPrior()
        if config.prior == "flow":
            prior = FlowPrior(top_dim, self.num_classes)
        elif config.prior == "vampprior":
            prior = VampPrior(config.num_pseudo_inputs, self.schema.image_shape, self.num_classes)
        return nn.ModuleDict(
            {
                "encoder": VAEEncoder(config, self.schema, self.num_classes),
                "decoder": VAEDecoder(config, self.schema, self.num_classes, self._likelihood()),
                "prior": prior,
                "second_stage": FlowPrior(top_dim, self.num_classes) if config.has_second_stage else nn.Identity(),
            }
        )

    def phases(self) -> tuple[Phase, ...]:
        """One step of the bound; with a second stage, one step of its flow."""
        config = self.config
        bound = Phase(
            "elbo",
            ("encoder", "decoder", "prior") if config.has_second_stage else self.served,
            self._loss,
            beta2=config.beta2,
            clip_norm=config.clip_norm,
            skip_norm=config.skip_norm,
        )
        if not config.has_second_stage:
            return (bound,)
        second_stage = Phase(
            "second_stage",
            ("second_stage",),
            self._second_stage_loss,
            clip_norm=_SECOND_STAGE_CLIP_NORM,
            every=config.second_stage_every,
        )
        return bound, second_stage

    def generator(self, networks: Networks) -> Generator:
        """The second stage, or else the prior; then the decoder."""
        top = networks["second_stage" if self.config.has_second_stage else "prior"]
        return VAESampler(top, decoder_of(networks))

    def log_likelihood(
        self,
        networks: Networks,
        images: Tensor,
        labels: Tensor | None,
        *,
        num_samples: int,
        chunk: int,
        seed: int,
        first: int = 0,
    ) -> Tensor:
        """See `genworker.families.base.Likelihood`; with ``binarise``, of pixels that are drawn as 0 and 1 once."""
        device = next(networks["encoder"].parameters()).device
        return log_likelihood(
            networks,
            images,
            labels if self.num_classes else None,
            num_samples=num_samples,
            chunk=chunk,
            seed=seed,
            first=first,
            binarise=self.config.binarise,
            device=device,
        )

    @torch.no_grad()
    def examine(self, networks: Networks, train: Batch, held_out: Batch | None, ctx: StepContext) -> Measures:
        """Measure collapse and overfitting.

        Returns:
            ``elbo_train``, and with held-out images ``elbo_held_out`` and ``elbo_gap``, their difference: nats per image by
            which training images fit better; and `genworker.families.vae_health.posterior_measures` on ``train``.
        """
        elbo, features = self._elbo(networks, train, ctx)
        noise = ctx.noise(_NOISE, self.config.latent_dim)[: len(features)]
        measures = posterior_measures(networks, features, self._labels(train), noise) | {"elbo_train": elbo}
        if held_out is not None:
            held_out_elbo, _ = self._elbo(networks, held_out, ctx)
            measures |= {"elbo_held_out": held_out_elbo, "elbo_gap": elbo - held_out_elbo}
        return measures

    def bands(self) -> tuple[Band, ...]:
        """Collapse is an alarm; a bound that is no number goes back to the last good checkpoint."""
        return collapse_bands(self.config.latent_dim)

    def _likelihood(self) -> PixelLikelihood:
        config, channels = self.config, self.schema.channels
        if config.likelihood == "bernoulli":
            return BernoulliPixels(channels)
        if config.likelihood == "gaussian":
            return GaussianPixels(channels, config.min_sigma)
        return LogisticMixturePixels(channels, config.mixture_components)

    def _labels(self, batch: Batch) -> Tensor | None:
        return batch.labels if self.num_classes else None

    def _observed(self, batch: Batch, ctx: StepContext) -> Tensor:
        """The images that the likelihood describes."""
        if not self.config.binarise:
            return batch.images
        uniform = ctx.uniform(_PIXELS, batch.images[0].numel())
        return binarised(batch.images, uniform[: len(batch.images)])

    def _elbo(self, networks: Networks, batch: Batch, ctx: StepContext) -> tuple[float, Tensor]:
        """Mean ELBO of the images, at one draw each, with the likelihood as it is outside training; and their features."""
        images, labels = self._observed(batch, ctx), self._labels(batch)
        noise = ctx.noise(_NOISE, self.config.latent_dim)[: len(images)]
        features, decoder = encoder_of(networks).features(images, labels), decoder_of(networks)
        drawn = draw(networks, features, labels, noise, top_prior(networks))
        log_pixels = decoder.likelihood.log_prob(decoder.parameters_of(drawn.z, labels), images)
        return float((log_pixels - drawn.kl.sum(1)).mean()), features

    def _loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        config, decoder = self.config, decoder_of(networks)
        images, labels = self._observed(batch, ctx), self._labels(batch)
        importance_weighted = config.objective == "iwae" and ctx.progress >= config.iwae_start
        count = config.iwae_samples if importance_weighted else 1
        noise = ctx.noise(_NOISE, config.latent_dim * count).view(-1, config.latent_dim)
        features = encoder_of(networks).features(images, labels)
        if count > 1:
            features, images = features.repeat_interleave(count, 0), images.repeat_interleave(count, 0)
            labels = None if labels is None else labels.repeat_interleave(count)
        drawn = draw(networks, features, labels, noise, top_prior(networks))
        parameters = decoder.parameters_of(drawn.z, labels)
        log_pixels = decoder.likelihood.training_log_prob(parameters, images, ctx.global_mean)
        weight = config.beta * (min(1.0, ctx.progress / config.kl_warmup) if config.kl_warmup else 1.0)
        nll, kl = -log_pixels.mean(), drawn.kl.mean(0)
        losses = {
            "negative_elbo": (nll + kl.sum()).detach(),
            "nll": nll.detach(),
            "kl": kl.sum().detach(),
        }
        if importance_weighted:
            log_weights = (log_pixels + weight * drawn.log_ratio).view(-1, count)
            losses["loss"] = math.log(count) - torch.logsumexp(log_weights, 1).mean()
        else:
            if config.free_bits:
                # Granted by the global batch, or the loss would depend on the number of workers.
                kl = kl * (ctx.global_mean(kl) > config.free_bits * drawn.kl_dims)
            # Without free bits an estimate below 0 counts as well: noise, which the ELBO has around its mean.
            losses["loss"] = nll + weight * kl.sum()
        if isinstance(decoder.likelihood, GaussianPixels):
            losses["sigma"] = decoder.likelihood.log_sigma.detach().exp()
        return losses

    def _second_stage_loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        images, labels = self._observed(batch, ctx), self._labels(batch)
        encoder, flow = encoder_of(networks), networks["second_stage"]
        assert isinstance(flow, FlowPrior)
        with torch.no_grad():
            mean, logvar = encoder.top(encoder.features(images, labels))
            z = mean + torch.exp(0.5 * logvar) * ctx.noise(_NOISE, mean.shape[1])
        return {"loss": -flow.log_prob(z, labels).mean()}
