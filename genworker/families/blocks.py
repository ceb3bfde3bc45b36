"""Norm-free convolutional stacks between a small grid of features and an image, shared by all image families.

Two kinds of block. ``plain``: two 3x3 convolutions, strided 4x4 convolutions between resolutions; several times faster on
a CPU. ``bottleneck``: R3GAN's inverted bottleneck (1x1 expand, grouped 3x3, 1x1 project) with [1, 2, 1]-filtered bilinear
resampling (Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, arXiv:2501.05441). In both, the last
convolution of a block starts at zero, so that every block starts as the identity, and there is no normalisation: a sample
never depends on its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.config import Spec

SLOPE = 0.2  # of every leaky ReLU


class StackConfig(Spec):
    """Shape of a convolutional stack.

    ``widths`` are channels from the coarsest grid to the image; each further entry doubles the resolution.
    """

    block: Literal["plain", "bottleneck"] = "plain"
    widths: Annotated[tuple[Annotated[int, Field(ge=4)], ...], Field(min_length=1, max_length=9)] = (128, 64, 32)
    blocks: Annotated[int, Field(ge=0, le=16)] | tuple[Annotated[int, Field(ge=0, le=16)], ...] = Field(
        1, description="residual blocks per stage: one number, or one per entry of widths"
    )
    patch: Literal[1, 2, 4] = Field(
        1, description="pixels per side that the convolution next to the image turns into one feature; 2 is fast"
    )
    group_width: Annotated[int, Field(ge=1)] = Field(
        16, description="channels per group of a bottleneck's 3x3 convolution"
    )

    @model_validator(mode="after")
    def _one_block_count_per_stage(self) -> StackConfig:
        if isinstance(self.blocks, tuple) and len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks {list(self.blocks)}: give one number, or as many as widths has ({len(self.widths)})"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide_the_channels(self) -> StackConfig:
        for width in self.widths if self.block == "bottleneck" else ():
            if 2 * width % num_groups(width, self.group_width):
                raise ValueError(
                    f"group_width {self.group_width}: a bottleneck of width {width} has {2 * width} channels inside, which "
                    f"{num_groups(width, self.group_width)} groups do not divide; make twice each width a multiple of it"
                )
        return self

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(width, number of blocks) of each stage, coarsest first."""
        blocks = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(self.widths)
        return list(zip(self.widths, blocks, strict=True))


def num_groups(width: int, group_width: int) -> int:
    """Groups of the 3x3 convolution of a bottleneck, which is twice as wide inside."""
    return max(1, 2 * width // group_width)


@dataclass(frozen=True)
class Grid:
    """How a stack covers an image: its coarsest grid, enlarged ``scale`` times, then cropped to the image."""

    height: int
    width: int
    scale: int

    @classmethod
    def covering(cls, height: int, width: int, config: StackConfig) -> Grid:
        """The smallest grid that covers an image of ``height`` x ``width``."""
        scale = config.patch * 2 ** (len(config.widths) - 1)
        return cls(-(-height // scale), -(-width // scale), scale)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width before cropping."""
        return self.height * self.scale, self.width * self.scale


def initialise(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Draw He-normal weights (fan-in of a leaky ReLU) scaled by ``gain``, and zero biases; returns the layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.ConvTranspose2d):
        fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] / (layer.stride[0] * layer.stride[1])
    else:
        fan_in = weight[0].numel()
    with torch.no_grad():
        weight.normal_(0.0, gain * math.sqrt(2.0 / (1.0 + SLOPE**2) / fan_in))
        if isinstance(layer.bias, Tensor):
            layer.bias.zero_()
    return layer


class PlainBlock(nn.Module):
    """x + conv3x3(lrelu(conv3x3(lrelu(x))))."""

    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.first = initialise(nn.Conv2d(channels, channels, 3, padding=1), gain)
        self.last = initialise(nn.Conv2d(channels, channels, 3, padding=1), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = self.first(F.leaky_relu(x, SLOPE))
        out: Tensor = x + self.last(F.leaky_relu(y, SLOPE))
        return out


class BottleneckBlock(nn.Module):
    """x + conv1x1(lrelu(grouped conv3x3(lrelu(conv1x1(x))))), twice as wide inside."""

    def __init__(self, channels: int, gain: float, group_width: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.expand = initialise(nn.Conv2d(channels, inner, 1, bias=False), gain)
        self.first_bias = nn.Parameter(torch.zeros(inner, 1, 1))
        self.spread = initialise(
            nn.Conv2d(inner, inner, 3, padding=1, groups=num_groups(channels, group_width), bias=False), gain
        )
        self.second_bias = nn.Parameter(torch.zeros(inner, 1, 1))
        self.last = initialise(nn.Conv2d(inner, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = F.leaky_relu(self.expand(x) + self.first_bias, SLOPE)
        y = F.leaky_relu(self.spread(y) + self.second_bias, SLOPE)
        out: Tensor = x + self.last(y)
        return out


def _blocks(channels: int, count: int, config: StackConfig) -> nn.Sequential:
    total = sum(blocks for _, blocks in config.stages)
    gain = max(1, total) ** -0.25  # Fix-up (Zhang et al. 2019) for residual branches of two weight layers, as in R3GAN
    if config.block == "plain":
        return nn.Sequential(*(PlainBlock(channels, gain) for _ in range(count)))
    return nn.Sequential(*(BottleneckBlock(channels, gain, config.group_width) for _ in range(count)))


class _FilteredResample(nn.Module):
    """Bilinear up or down by two with the [1, 2, 1] filter, and a 1x1 convolution when the width changes."""

    def __init__(self, wide: int, narrow: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.channels = nn.Conv2d(wide, narrow, 1, bias=False) if wide != narrow else nn.Identity()
        if isinstance(self.channels, nn.Conv2d):
            # No activation follows, so the variance is kept by 1 / fan-in.
            initialise(self.channels, math.sqrt((1.0 + SLOPE**2) / 2.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = self.channels(x)
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        taps = x.new_tensor([1.0, 2.0, 1.0]) / 4.0
        kernel = (taps[:, None] * taps[None, :]).expand(x.shape[1], 1, 3, 3)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
        out: Tensor = self.channels(F.avg_pool2d(x, 2))
        return out


def _up(wide: int, narrow: int, config: StackConfig) -> nn.Module:
    if config.block == "plain":
        return nn.Sequential(nn.LeakyReLU(SLOPE), initialise(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)))
    return _FilteredResample(wide, narrow, up=True)


def _down(narrow: int, wide: int, config: StackConfig) -> nn.Module:
    if config.block == "plain":
        return nn.Sequential(nn.LeakyReLU(SLOPE), initialise(nn.Conv2d(narrow, wide, 4, stride=2, padding=1)))
    return _FilteredResample(narrow, wide, up=False)


class UpStack(nn.Module):
    """A feature vector to an image: linear to the coarsest grid, blocks and doublings, one convolution, a crop."""

    def __init__(self, in_features: int, channels: int, height: int, width: int, config: StackConfig) -> None:
        super().__init__()
        self.grid = Grid.covering(height, width, config)
        self.size = (height, width)
        (current, count), *finer = config.stages
        self.start = initialise(nn.Linear(in_features, current * self.grid.height * self.grid.width))
        stages: list[nn.Module] = [_blocks(current, count, config)]
        for width_of_stage, count in finer:
            stages += [_up(current, width_of_stage, config), _blocks(width_of_stage, count, config)]
            current = width_of_stage
        self.stages = nn.Sequential(*stages)
        if config.patch == 1:
            self.to_image = initialise(nn.Conv2d(current, channels, 3, padding=1), 0.5)
        else:
            size = 2 * config.patch
            self.to_image = initialise(
                nn.ConvTranspose2d(current, channels, size, config.patch, config.patch // 2), 0.5
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_features] to [N, channels, height, width], unbounded."""
        x: Tensor = self.start(features).unflatten(1, (-1, self.grid.height, self.grid.width))
        x = self.to_image(F.leaky_relu(self.stages(x), SLOPE))
        top, left = ((padded - size) // 2 for padded, size in zip(self.grid.padded, self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]]


class DownStack(nn.Module):
    """An image to a feature vector: a pad, one convolution, blocks and halvings, linear over the coarsest grid."""

    def __init__(self, channels: int, height: int, width: int, out_features: int, config: StackConfig) -> None:
        super().__init__()
        self.grid = Grid.covering(height, width, config)
        self.size = (height, width)
        (current, count), *coarser = config.stages[::-1]
        if config.patch == 1:
            self.from_image = initialise(nn.Conv2d(channels, current, 3, padding=1))
        else:
            size = 2 * config.patch
            self.from_image = initialise(nn.Conv2d(channels, current, size, config.patch, config.patch // 2))
        stages: list[nn.Module] = [_blocks(current, count, config)]
        for width_of_stage, count in coarser:
            stages += [_down(current, width_of_stage, config), _blocks(width_of_stage, count, config)]
            current = width_of_stage
        self.stages = nn.Sequential(*stages)
        self.end = initialise(nn.Linear(current * self.grid.height * self.grid.width, out_features))

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, channels, height, width] to [N, out_features]."""
        rest_h, rest_w = (padded - size for padded, size in zip(self.grid.padded, self.size, strict=True))
        if rest_h or rest_w:
            images = F.pad(images, (rest_w // 2, rest_w - rest_w // 2, rest_h // 2, rest_h - rest_h // 2), value=-1.0)
        x = F.leaky_relu(self.stages(self.from_image(images)), SLOPE)
        out: Tensor = self.end(x.flatten(1))
        return out


class ClassEmbedding(nn.Module):
    """Labels to features; for unconditional models it has no features and ignores the labels."""

    def __init__(self, num_classes: int, features: int) -> None:
        super().__init__()
        self.features = features if num_classes else 0
        self.table = nn.Parameter(torch.randn(num_classes, self.features)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Append the classes' features to x [N, D], giving [N, D + features]."""
        if self.table is None:
            return x
        if labels is None:
            raise ValueError("this model is conditional: labels are needed")
        return torch.cat([x, self.table[labels].to(x.dtype)], dim=1)
