"""Adaptive augmentation of what a discriminator sees, so that it cannot learn a small set of images by heart.

In: images and one row of uniform numbers per image. Out: images of the same shape, each moved, turned and recoloured with
probability p, differentiable any number of times. The random numbers come from the caller; p is a buffer, kept in
checkpoints, and moves by how sure the discriminator is of its training images (Karras et al., "Training generative
adversarial networks with limited data", NeurIPS 2020, arXiv:2006.06676), or by a schedule.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from genworker.config import Spec
from genworker.families.augment_operations import NUM_UNIFORMS, Draw, cut_out, inverse_affine, recolour, resample
from genworker.families.base import Cosine

__all__ = ["NUM_UNIFORMS", "Augment", "AugmentConfig"]


class AugmentConfig(Spec):
    """The ``augment`` part of a GAN's spec. Give a target to adapt to, or a schedule."""

    groups: tuple[Literal["blit", "geometry", "colour", "cutout"], ...] = Field(
        ("blit", "geometry", "colour"),
        description="blit: mirror, quarter turns, whole-pixel shifts; geometry: scale, turn, stretch, shift; colour: "
        "brightness, contrast, inversion and, in colour images, hue and saturation; cutout: a grey rectangle",
    )
    target: Annotated[float, Field(gt=-1, lt=1)] | None = Field(
        None, description="E[sign D(real)] to hold by moving p; 0.6 is usual; without a schedule it is 0.6"
    )
    p_max: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="largest p of the adaptation; beyond 0.8 augmentations begin to show in generated images"
    )
    speed_images: Annotated[int, Field(ge=1)] = Field(500_000, description="images that p takes from 0 to 1")
    every_images: Annotated[int, Field(ge=1)] = Field(256, description="p is reconsidered after so many images")
    schedule: Cosine | None = Field(
        None, description="p over the run instead of a target, such as {start: 0, end: 0.3}"
    )

    @model_validator(mode="after")
    def _one_rule_for_p(self) -> AugmentConfig:
        if self.schedule is not None and self.target is not None:
            raise ValueError(
                f"target {self.target:g} and schedule: p either adapts to the target or follows the schedule; leave one out"
            )
        for value in (self.schedule.start, self.schedule.end) if self.schedule is not None else ():
            if not 0 <= value <= 1:
                raise ValueError(f"schedule {value:g}: p is a probability, in [0, 1]")
        if not self.groups:
            raise ValueError("groups []: name at least one, or leave family.augment out")
        return self

    @property
    def goal(self) -> float:
        """The target in force."""
        return 0.6 if self.target is None else self.target


class Augment(nn.Module):
    """Random changes of images with probability ``p`` each; it has buffers and no weights."""

    p: Tensor
    seen: Tensor
    signs: Tensor

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # images since p was last reconsidered
        self.register_buffer("signs", torch.zeros(()))  # sum over them of sign D(real)

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Map images [N, C, H, W] and uniform numbers [N, NUM_UNIFORMS] to images of the same shape, float32, not clamped."""
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            # Gates and amounts take the same columns whatever groups are on.
            draw = Draw(uniform, self.p)
            blit, geometry = ("blit" in self.config.groups), ("geometry" in self.config.groups)
            if blit or geometry:
                images = resample(images, inverse_affine(draw, images.shape[2:], blit=blit, geometry=geometry))
            if "colour" in self.config.groups:
                images = recolour(images, draw)
            if "cutout" in self.config.groups:
                images = cut_out(images, draw)
            return images

    @torch.no_grad()
    def follow_schedule(self, progress: float) -> None:
        """Set p by the schedule, if there is one."""
        if self.config.schedule is not None:
            self.p.fill_(self.config.schedule.at(progress))

    @torch.no_grad()
    def adapt(self, mean_sign: Tensor, num_images: int) -> None:
        """Move p after a step on ``num_images`` real images whose mean sign (over all workers) was ``mean_sign``."""
        if self.config.schedule is not None:
            return
        # A step that is not finite says nothing about overfitting.
        known = torch.isfinite(mean_sign)
        self.signs += torch.where(known, mean_sign, 0.0) * num_images
        self.seen += known * num_images
        due = self.seen >= self.config.every_images
        direction = torch.sign(self.signs / self.seen.clamp(min=1) - self.config.goal)
        moved = (self.p + direction * self.seen / self.config.speed_images).clamp(0.0, self.config.p_max)
        self.p.copy_(torch.where(due, moved, self.p))
        self.signs.mul_(~due)
        self.seen.mul_(~due)
