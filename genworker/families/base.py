"""What a model family is to everybody else, and how it is trained.

**images** are float32 tensors [N, C, H, W] in [-1, 1]; **latents** z float32 [N, latent_dim], standard normal; **labels**
int64 [N], or None where the schema has no classes. A family says what its trained networks *can do* by the capabilities it
implements (`Generator` for all; `Scorer`, `Likelihood`; encoders and translators follow). A GAN's generator and a VAE's
decoder are the same thing to everybody else. Families know torch and nothing of Ray, storage or processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from pydantic import Field, model_validator
from torch import Tensor, nn

from genworker.config import Spec
from genworker.schema import ImageSchema


class Cosine(Spec):
    """A value that moves from ``start`` to ``end`` along half a cosine over the training run, counted in images seen.

    A plain number in a spec is a value that does not move.
    """

    start: float
    end: float

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"start": value, "end": value}
        return value

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]; constant outside."""
        progress = min(max(progress, 0.0), 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class FamilyConfig(Spec):
    """What every family lets the user say; each family adds its own ``name`` and fields."""

    name: str
    latent_dim: Annotated[int, Field(ge=1, le=4096)] = 64
    conditional: bool = Field(True, description="use labels where the data has them")
    lr: Cosine
    ema_halflife_images: Cosine = Field(Cosine(start=10_000, end=10_000), description="half-life of the weight average")
    ema_rampup: Annotated[float, Field(gt=0)] | None = Field(
        0.1, description="half-life at most this share of the images seen"
    )

    schedule_limits: ClassVar[dict[str, tuple[float, float]]] = {
        "lr": (0.0, math.inf),
        "ema_halflife_images": (0.0, math.inf),
    }
    """The fields that are a `Cosine`, each with the range [low, high) that its values lie in."""

    @model_validator(mode="after")
    def _schedules_are_possible(self) -> Self:
        for name, (low, high) in self.schedule_limits.items():
            cosine: Cosine = getattr(self, name)
            for value in (cosine.start, cosine.end):
                if not low <= value < high:
                    raise ValueError(f"{name} {value:g}: must lie in [{low:g}, {high:g})")
        return self

    @property
    def unit(self) -> int:
        """Neighbours of a batch that a loss looks at together, and that therefore stay on one worker."""
        return 1


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

    @property
    def batch_images(self) -> int:
        """Images that all workers together put through the losses at once: the global batch, or a micro-batch of it."""
        ...

    def noise(self, stream: int, dim: int) -> Tensor:
        """Standard normal float32 [n, dim], one row per image of the batch.

        A function of (seed, stream, the image's position in training) only, so that the noise of a global batch does not
        depend on how many workers share it. Streams of one training step must differ.
        """
        ...

    def uniform(self, stream: int, dim: int) -> Tensor:
        """Uniform float32 [n, dim] in [0, 1), addressed like `noise`; a stream is used for one of the two only."""
        ...

    def global_mean(self, value: Tensor) -> Tensor:
        """Mean of a per-worker batch mean over the global batch, detached; every worker must call it equally often."""
        ...


Networks = nn.ModuleDict
Losses = dict[str, Tensor]
Measures = dict[str, float | list[float]]


@dataclass(frozen=True)
class Phase:
    """One optimizer step within a training step.

    Attributes:
        name: for logs, such as ``discriminator``.
        networks: names of the sub-networks whose parameters this phase moves; all others are frozen during it.
        loss: maps (networks, batch, context) to named scalars, each the mean over the worker's batch. ``loss`` is
            minimised, the others are logged.
        beta1: Adam's first beta.
        beta2: Adam's second beta, which may move over the run.
        eps: Adam's epsilon.
        clip_norm: the gradient of the global batch is scaled down to this norm, or None.
        skip_norm: a step whose gradient has a larger norm is skipped and counted (Child 2021, "VDVAE"), or None.
        lr_scale: factor on the family's learning rate.
        every: the phase runs in every so many-th training step; WGAN-GP moves its generator in every fifth.
    """

    name: str
    networks: tuple[str, ...]
    loss: Callable[[Networks, Batch, StepContext], Losses]
    beta1: float = 0.9
    beta2: Cosine = field(default_factory=lambda: Cosine(start=0.999, end=0.999))
    eps: float = 1e-8
    clip_norm: float | None = None
    skip_norm: float | None = None
    lr_scale: float = 1.0
    every: int = 1


@dataclass(frozen=True)
class Band:
    """What the watchdog expects of one metric.

    Attributes:
        metric: its name in the reports, such as ``discriminator.real_sign``.
        low: smallest healthy value, or None.
        high: largest healthy value, or None.
        meaning: what a value outside tells, and what to change; a sentence for the user.
        action: ``warn`` raises an alarm and goes on; ``rollback`` also returns to the last good checkpoint.
        from_progress: the band holds from this share of the run on; before it, training has just begun.
    """

    metric: str
    low: float | None
    high: float | None
    meaning: str
    action: Literal["warn", "rollback"] = "warn"
    from_progress: float = 0.05


class Generator(Protocol):
    """Capability: latents and labels to images."""

    latent_dim: int

    def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Map z [N, latent_dim] and labels [N] to images [N, C, H, W], nominally in [-1, 1] (not clamped)."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """Capability of a family: estimates of log p(x) of images under its trained networks."""

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
        """Estimate log p(x | label) of each image by importance sampling (Burda et al. 2016), a bound from below on average.

        Args:
            networks: the served ones at least; no weight moves.
            images: float32 [N, C, H, W] in [-1, 1].
            labels: int64 [N], or None where the schema has no classes.
            num_samples: latents per image; more make the bound tighter, 5,000 is usual in published tables.
            chunk: latents that are decoded at once, over images and samples together: what bounds the memory.
            seed: of the latents; image i's depend on (seed, i) alone.
            first: i of the first image, where these are a part of a larger set.

        Returns:
            float64 [N], nats: log density or log probability, as the family's likelihood says.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Capability of a family: its trained networks say how real an image looks to them."""

    @property
    def scoring(self) -> tuple[str, ...]:
        """Sub-networks that it takes, stored beside the served ones; none where this config cannot score."""
        ...

    def score(self, networks: Networks, images: Tensor, labels: Tensor | None) -> Tensor:
        """Score images one by one.

        Args:
            networks: the ``scoring`` ones at least.
            images: float32 [N, C, H, W] in [-1, 1].
            labels: int64 [N], or None where the schema has no classes.

        Returns:
            float32 [N], higher for what looks more real. Where a loss only compares pairs, only differences mean something.
        """
        ...


class Family(Protocol):
    """A kind of model: how to build its networks, how to train them, what they can do.

    Attributes:
        Config: the pydantic model of its part of a spec; ``Config.name`` is the registry's name.
        served: sub-networks whose weight average goes into a bundle.
        schema: of the images that it was made for.
    """

    Config: ClassVar[type[FamilyConfig]]
    served: ClassVar[tuple[str, ...]]
    schema: ImageSchema

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

    def examine(self, networks: Networks, train: Batch, held_out: Batch | None, ctx: StepContext) -> Measures:
        """Measure the health of the networks without gradients, at every report, on rank 0 alone (no collectives).

        Args:
            networks: as trained, not averaged.
            train: images that were trained on, of at most a few hundred.
            held_out: images that never are, or None where the run holds none out.
            ctx: noise for ``train``'s and ``held_out``'s rows alike.

        Returns:
            Numbers, or one list of numbers per latent, by metric name.
        """
        ...

    def bands(self) -> tuple[Band, ...]:
        """What the watchdog watches in this family's losses and measures."""
        ...
