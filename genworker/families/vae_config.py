"""What a user may say about a VAE: its latents, networks, likelihood, prior, objective and steps. Knows no tensors."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genworker.families.base import Cosine, FamilyConfig
from genworker.families.blocks import StackConfig
from genworker.families.likelihoods import LikelihoodName


class VAEConfig(FamilyConfig):
    """The ``family`` part of a spec, for vae. Defaults suit small grey images on a CPU."""

    name: Literal["vae"] = "vae"
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="latents of all levels together")
    lr: Cosine = Cosine(start=2e-3, end=1e-4)
    levels: Literal[1, 2] = Field(
        1, description="2: q(z2|x) q(z1|x,z2), p(z2) p(z1|z2) p(x|z1,z2); half the latents each"
    )
    network: Literal["conv", "mlp"] = Field("conv", description="mlp: gated linear layers, as in most published tables")
    encoder: StackConfig = Field(StackConfig(), description="of network conv")
    decoder: StackConfig = Field(StackConfig(), description="of network conv")
    mlp_width: Annotated[int, Field(ge=1)] = Field(300, description="of gated linear layers: network mlp, and levels 2")
    mlp_depth: Annotated[int, Field(ge=1, le=16)] = Field(2, description="number of gated linear layers in a row")
    embedding_dim: Annotated[int, Field(ge=1)] = Field(32, description="class features")

    likelihood: LikelihoodName = "gaussian"
    binarise: bool = Field(
        False, description="with bernoulli: draw each pixel as 0 or 1 by its brightness, anew whenever it is seen"
    )
    min_sigma: Annotated[float, Field(gt=0)] = Field(
        0.01, description="floor of the shared standard deviation, gaussian"
    )
    mixture_components: Annotated[int, Field(ge=1, le=100)] = Field(10, description="of logistic_mixture")

    prior: Literal["flow", "standard", "vampprior"] = Field(
        "flow", description="of the top level: learned with the model (flow, vampprior), or N(0, I)"
    )
    num_pseudo_inputs: Annotated[int, Field(ge=1)] = Field(500, description="components of the vampprior")
    second_stage: bool | None = Field(
        None,
        description="fit a flow to where the encoder puts the training images, and sample from it instead of from the "
        "prior; null: unless the prior is a flow itself",
    )
    second_stage_every: Annotated[int, Field(ge=1)] = Field(
        1, description="the second stage takes part in every so many-th step; it needs less of them than the bound"
    )

    objective: Literal["elbo", "iwae"] = "elbo"
    iwae_samples: Annotated[int, Field(ge=1)] = Field(8, description="latents per image, objective iwae")
    iwae_start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the run that trains the ELBO first, which costs one latent per image; then objective iwae",
    )
    kl_warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of the run over which the weight of the KL term grows from 0 to 1"
    )
    free_bits: Annotated[float, Field(ge=0)] = Field(
        0.05, description="nats of KL per latent that are not penalised, objective elbo"
    )
    beta: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the KL term; 1 is the ELBO")

    beta2: Cosine = Cosine(start=0.999, end=0.999)
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(1000.0, description="largest gradient norm of a step")
    skip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="a step with a larger gradient norm is skipped and counted"
    )

    schedule_limits: ClassVar[dict[str, tuple[float, float]]] = FamilyConfig.schedule_limits | {"beta2": (0.0, 1.0)}

    @property
    def level_dims(self) -> tuple[int, ...]:
        """Latents of each level, the top one first."""
        if self.levels == 1:
            return (self.latent_dim,)
        top = self.latent_dim // 2
        return (top, self.latent_dim - top)

    @property
    def has_second_stage(self) -> bool:
        """Whether samples come from a flow that a phase of its own fits."""
        if self.second_stage is None:
            return self.prior != "flow" and self.level_dims[0] > 1
        return self.second_stage

    @model_validator(mode="after")
    def _flow_has_two_halves(self) -> VAEConfig:
        needs_flow = self.prior != "standard" or bool(self.second_stage)
        if self.level_dims[0] < (2 if needs_flow else 1):
            raise ValueError(
                f"latent_dim {self.latent_dim}: levels {self.levels} give the top one {self.level_dims[0]}, and a flow (prior "
                "flow, or the second stage that samples come from) moves one half of them by the other, so it needs 2 at "
                "least; take more, or prior: standard"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> VAEConfig:
        if self.binarise and self.likelihood != "bernoulli":
            raise ValueError(
                f"binarise true with likelihood {self.likelihood}: pixels of 0 and 1 are what bernoulli describes; set "
                "likelihood: bernoulli, or binarise: false"
            )
        if self.prior == "vampprior" and self.second_stage is False:
            raise ValueError(
                "second_stage false with prior vampprior: a mixture is no map from noise to latents, so samples have to "
                "come from the second stage; leave second_stage out"
            )
        return self
