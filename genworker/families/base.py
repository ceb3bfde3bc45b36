"""What a model family is to everybody else, and how it is trained.

**images** are float32 tensors [N, C, H, W] in [-1, 1]; **latents** z float32 [N, latent_dim], standard normal; **labels**
int64 [N], or None where the schema has no classes. A family says what its trained networks *can do* by the capabilities it
implements (`Generator` for all; encoders, scorers and translators follow). A GAN's generator and a VAE's decoder are the
same thing to everybody else. Families know torch and nothing of Ray, storage or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor, nn

from genworker.config import Spec
from genworker.schema import ImageSchema


class Cosine(Spec):
    """A value that moves from ``start`` to ``end`` along half a cosine over the training run, counted in images seen."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]; constant outside."""
        from math import cos, pi

        progress = min(max(progress, 0.0), 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + cos(pi * progress))


class FamilyConfig(Spec):
    """What every family lets the user say; each family adds its own ``name`` and fields."""

    name: str
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    conditional: bool = Field(True, description="use labels where the data has them")
    lr: Cosine
    ema_halflife_images: Annotated[float, Field(ge=0)] = Field(10_000, description="half-life of the weight average")
    ema_rampup: Annotated[float, Field(gt=0)] | None = Field(
        0.1, description="half-life at most this share of the images seen"
    )


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch.

    Attributes:
        images: float32 [n, C, H, W] in [-1, 1].
        labels: int64 [n], or None.
    """

    images: Tensor
    labels: Tensor | None


class StepContext(Protocol):
    """What a loss may ask of the training loop."""

    @property
    def progress(self) -> float:
        """Share of the planned images already seen, in [0, 1]."""
        ...

    def noise(self, stream: int, dim: int) -> Tensor:
        """Standard normal float32 [n, dim], one row per image of the batch.

        A function of (seed, stream, the image's position in training) only, so that the noise of a global batch does not
        depend on how many workers share it. Streams of one training step must differ.
        """
        ...

    def global_mean(self, value: Tensor) -> Tensor:
        """Mean of a per-worker batch mean over the global batch, detached; every worker must call it equally often."""
        ...


Networks = nn.ModuleDict
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimizer step within a training step.

    Attributes:
        name: for logs, such as ``discriminator``.
        networks: names of the sub-networks whose parameters this phase moves; all others are frozen during it.
        loss: maps (networks, batch, context) to named scalars, each the mean over the worker's batch. ``loss`` is
            minimised, the others are logged.
        betas: Adam's betas.
        eps: Adam's epsilon.
        clip_norm: largest norm of the gradient of the global batch, or None.
    """

    name: str
    networks: tuple[str, ...]
    loss: Callable[[Networks, Batch, StepContext], Losses]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None


class Generator(Protocol):
    """Capability: latents and labels to images."""

    latent_dim: int

    def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim] and labels [N] to images [N, C, H, W], nominally in [-1, 1] (not clamped)."""
        ...


class Family(Protocol):
    """A kind of model: how to build its networks, how to train them, what they can do.

    Attributes:
        Config: the pydantic model of its part of a spec; ``Config.name`` is the registry's name.
        served: sub-networks whose weight average goes into a bundle.
    """

    Config: ClassVar[type[FamilyConfig]]
    served: ClassVar[tuple[str, ...]]

    def __init__(self, config: Any, schema: ImageSchema) -> None: ...

    def build(self) -> Networks:
        """Make all sub-networks with fresh weights, drawn from torch's global generator."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """The optimizer steps of one training step, in order."""
        ...

    def generator(self, networks: Networks) -> Generator:
        """The generating sub-network; ``networks`` needs to hold the served ones only."""
        ...
