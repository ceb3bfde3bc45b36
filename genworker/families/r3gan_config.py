"""The ``family`` part of a spec, for r3gan: what can be set, and which combinations make no sense and why."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genworker.families.augment import AugmentConfig
from genworker.families.base import Cosine, FamilyConfig
from genworker.families.blocks import StackConfig


class R3GANConfig(FamilyConfig):
    """The ``family`` part of a spec, for r3gan. Defaults suit small grey images on a CPU."""

    name: Literal["r3gan"] = "r3gan"
    lr: Cosine = Cosine(start=1e-3, end=1e-4)
    generator: StackConfig = StackConfig()
    discriminator: StackConfig = StackConfig()
    embedding_dim: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="class features")
    output: Literal["tanh", "linear"] = Field(
        "tanh", description="tanh suits images with much pure black or white; the paper's generator is linear"
    )
    loss: Literal["relativistic", "non_saturating", "hinge", "wasserstein"] = "relativistic"
    r1: bool = Field(True, description="penalise the discriminator's gradient at real images")
    r2: bool = Field(True, description="penalise it at generated images")
    gamma: Cosine = Field(
        Cosine(start=1.0, end=0.1), description="weight of both penalties (halved); grows with resolution"
    )
    gp: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="weight of WGAN-GP's penalty, usually 10: gradients of norm 1 between real and generated images",
    )
    discriminator_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="the generator moves in every so many-th step only; WGAN-GP uses 5"
    )
    pac: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="images that the discriminator judges together, against mode collapse (PacGAN); 2 is usual"
    )
    augment: AugmentConfig | None = Field(None, description="augment what the discriminator sees, for small data sets")
    discriminator_lr_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="factor on lr for the discriminator (two time-scale rule, Heusel et al. 2017)"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta2: Cosine = Cosine(start=0.9, end=0.99)

    schedule_limits: ClassVar[dict[str, tuple[float, float]]] = FamilyConfig.schedule_limits | {
        "gamma": (0.0, math.inf),
        "beta2": (0.0, 1.0),
    }

    @property
    def unit(self) -> int:
        """A pack stays on one worker."""
        return self.pac

    @model_validator(mode="after")
    def _penalties_fit_the_loss(self) -> R3GANConfig:
        zero_centred = [name for name in ("r1", "r2") if getattr(self, name)]
        if self.gp is not None and zero_centred:
            raise ValueError(
                f"gp {self.gp:g} with {' and '.join(zero_centred)}: gp pulls gradients to norm 1, r1 and r2 pull them to 0; "
                "set r1: false and r2: false, or leave gp out"
            )
        if self.gp is not None and self.loss != "wasserstein":
            raise ValueError(
                f"gp {self.gp:g} with loss {self.loss}: a gradient of norm 1 is what a Wasserstein critic has; take "
                "loss: wasserstein, or r1 and r2 instead of gp"
            )
        weight = max(self.gamma.start, self.gamma.end) if zero_centred else self.gp or 0.0
        if self.loss == "wasserstein" and not weight > 0:
            raise ValueError(
                "loss wasserstein without a penalty: the critic's scores would grow without bound; set gp: 10 (WGAN-GP), or "
                "r1 and r2 with gamma above 0"
            )
        return self
