"""A convolutional VAE with a calibrated likelihood, so that no weight between its two terms has to be tuned.

Losses are summed over pixels and latents, never averaged. Likelihoods: ``gaussian`` with the optimal shared variance
(Rybkin et al., "Simple and effective VAE training with calibrated decoders", ICML 2021) or ``bernoulli``. Against
posterior collapse: KL warm-up (Sonderby et al. 2016) and free bits (Kingma et al. 2016). The prior is learned
(`genworker.families.priors`) or standard normal. Samples are the decoder's means.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

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
from genworker.families.priors import FlowPrior, StandardPrior, standard_log_prob
from genworker.schema import ImageSchema

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016: a latent is in use when Var_x(E[q(z|x)]) exceeds this


class VAEConfig(FamilyConfig):
    """The ``family`` part of a spec, for vae. Defaults suit small grey images on a CPU."""

    name: Literal["vae"] = "vae"
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = 16
    lr: Cosine = Cosine(start=2e-3, end=1e-4)
    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig()
    embedding_dim: Annotated[int, Field(ge=1)] = Field(32, description="class features")
    prior: Literal["flow", "standard"] = Field("flow", description="learned with the model, or N(0, I)")
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    min_sigma: Annotated[float, Field(gt=0)] = Field(
        0.01, description="floor of the shared standard deviation, gaussian"
    )
    kl_warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of the run over which the weight of the KL term grows from 0 to 1"
    )
    free_bits: Annotated[float, Field(ge=0)] = Field(0.05, description="nats of KL per latent that are not penalised")
    beta: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the KL term; 1 is the ELBO")
    beta2: Cosine = Cosine(start=0.999, end=0.999)
    clip_norm: Annotated[float, Field(gt=0)] = Field(1000.0, description="largest gradient norm of a step")

    @model_validator(mode="after")
    def _flow_has_two_halves(self) -> VAEConfig:
        if self.prior == "flow" and self.latent_dim < 2:
            raise ValueError(
                f"latent_dim {self.latent_dim}: prior flow moves one half of the latents by the other, so it needs 2 at "
                "least; take more, or prior: standard"
            )
        return self


class VAEEncoder(nn.Module):
    """Images and labels to the parameters of q(z | x)."""

    def __init__(self, config: VAEConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        hidden = 4 * config.latent_dim
        self.stack = DownStack(schema.channels, schema.height, schema.width, hidden, config.encoder)
        self.classes = ClassEmbedding(num_classes, config.embedding_dim)
        self.end = nn.Linear(hidden + self.classes.features, 2 * config.latent_dim)

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map images [N, C, H, W] to mean and log variance, [N, latent_dim] each."""
        features = F.leaky_relu(self.stack(images), 0.2)
        mean, logvar = self.end(self.classes(features, labels)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-12.0, 6.0)


class VAEDecoder(nn.Module):
    """Latents and labels to the mean image of p(x | z)."""

    def __init__(self, config: VAEConfig, schema: ImageSchema, num_classes: int) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.classes = ClassEmbedding(num_classes, config.embedding_dim)
        self.stack = UpStack(
            config.latent_dim + self.classes.features, schema.channels, schema.height, schema.width, config.decoder
        )

    def logits(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim] to [N, C, H, W] before the squashing into [-1, 1]."""
        logits: Tensor = self.stack(self.classes(z, labels))
        return logits

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim], labels [N] to mean images [N, C, H, W] in [-1, 1]."""
        # tanh(l / 2) = 2 sigmoid(l) - 1: the mean of a Bernoulli pixel with logit l, moved from [0, 1] to [-1, 1].
        return torch.tanh(self.logits(z, labels) / 2)


class VAESampler(nn.Module):
    """Prior and decoder in a row: standard normal latents and labels to mean images."""

    def __init__(self, prior: nn.Module, decoder: VAEDecoder) -> None:
        super().__init__()
        self.latent_dim = decoder.latent_dim
        self.prior = prior
        self.decoder = decoder

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim], labels [N] to images [N, C, H, W] in [-1, 1]."""
        images: Tensor = self.decoder(self.prior(z, labels), labels)
        return images


class VAE:
    """The family; see `genworker.families.base.Family`."""

    Config: ClassVar[type[FamilyConfig]] = VAEConfig
    served: ClassVar[tuple[str, ...]] = ("encoder", "decoder", "prior")

    def __init__(self, config: VAEConfig, schema: ImageSchema) -> None:
        self.config = config
        self.schema = schema
        self.num_classes = schema.num_classes if config.conditional else 0

    def build(self) -> Networks:
        """Make ``encoder``, ``decoder`` and ``prior`` (which has no weights when it is N(0, I))."""
        dim = self.config.latent_dim
        prior = FlowPrior(dim, self.num_classes) if self.config.prior == "flow" else StandardPrior()
        return nn.ModuleDict(
            {
                "encoder": VAEEncoder(self.config, self.schema, self.num_classes),
                "decoder": VAEDecoder(self.config, self.schema, self.num_classes),
                "prior": prior,
            }
        )

    def phases(self) -> tuple[Phase, ...]:
        """One step of all networks on the negative ELBO."""
        networks = ("encoder", "decoder", "prior")
        return (Phase("elbo", networks, self._loss, beta2=self.config.beta2, clip_norm=self.config.clip_norm),)

    def generator(self, networks: Networks) -> Generator:
        """Prior and decoder."""
        decoder = networks["decoder"]
        assert isinstance(decoder, VAEDecoder)
        return VAESampler(networks["prior"], decoder)

    def examine(self, networks: Networks, train: Batch, held_out: Batch | None, ctx: StepContext) -> Measures:
        """Nothing yet."""
        return {}

    def bands(self) -> tuple[Band, ...]:
        """None yet."""
        return ()

    def _loss(self, networks: Networks, batch: Batch, ctx: StepContext) -> Losses:
        config = self.config
        labels = batch.labels if self.num_classes else None
        mean, logvar = networks["encoder"](batch.images, labels)
        noise = ctx.noise(0, config.latent_dim)
        z = mean + torch.exp(0.5 * logvar) * noise
        decoder = networks["decoder"]
        assert isinstance(decoder, VAEDecoder)
        logits = decoder.logits(z, labels).float()
        nll, sigma = self._negative_log_likelihood(logits, batch.images, ctx)
        if config.prior == "standard":
            kl = (0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)).mean(0)  # [latent_dim], exact
        else:
            # One sample's estimate of the KL of all latents together, shape [1].
            prior = networks["prior"]
            assert isinstance(prior, FlowPrior)
            log_q = standard_log_prob(noise) - 0.5 * logvar.sum(1)
            kl = (log_q - prior.log_prob(z, labels)).mean(0, keepdim=True)
        # Free bits are granted by the global batch, or the loss would depend on the number of workers.
        granted = config.free_bits * config.latent_dim / len(kl)
        penalised = (ctx.global_mean(kl) > granted).float()
        warmup = min(1.0, ctx.progress / config.kl_warmup) if config.kl_warmup else 1.0
        loss = nll + config.beta * warmup * (kl * penalised).sum()
        mean_of_means = ctx.global_mean(mean.mean(0))
        variance = ctx.global_mean((mean - mean_of_means).square().mean(0))
        return {
            "loss": loss,
            "negative_elbo": (nll + kl.sum()).detach(),
            "nll": nll.detach(),
            "kl": kl.sum().detach(),
            "sigma": sigma,
            "active_units": (variance > ACTIVE_UNIT_VARIANCE).float().sum(),
        }

    def _negative_log_likelihood(self, logits: Tensor, images: Tensor, ctx: StepContext) -> tuple[Tensor, Tensor]:
        """Mean over the batch of the sum over pixels of -log p(x | z), in nats; and the standard deviation used."""
        if self.config.likelihood == "bernoulli":
            targets = (images + 1.0) / 2.0
            nll = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum((1, 2, 3)).mean()
            return nll, nll.new_zeros(())
        squared = (images - torch.tanh(logits / 2)).square().sum((1, 2, 3)).mean()
        num_pixels = images[0].numel()
        # The best shared variance is the global batch's mean squared error. At that optimum the derivative of the loss by
        # sigma is zero, so treating sigma as a constant gives the exact gradient.
        sigma = (ctx.global_mean(squared) / num_pixels).sqrt().clamp(min=self.config.min_sigma)
        nll = squared / (2 * sigma.square()) + num_pixels * (sigma.log() + 0.5 * math.log(2 * math.pi))
        return nll, sigma
