"""Norm-free convolutional stacks between a small grid of features and an image, shared by all image families.

Two kinds. ``plain``: two 3x3 convolutions per block, strided 4x4 convolutions between resolutions, a full linear map at the
coarsest grid; several times faster on a CPU. ``bottleneck``: R3GAN's, that is inverted bottlenecks (1x1 expand, grouped 3x3,
1x1 project), resampling with [1, 2, 1], and a learned picture per channel at the coarsest grid (Huang et al., "The GAN is
dead; long live the GAN!", NeurIPS 2024, arXiv:2501.05441).

Features are laid out channels-last from the coarsest grid on, in training too, which CPU libraries compute faster
(tests/benchmarks/networks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.config import Spec
from genworker.errors import UsageError
from genworker.families.layers import (
    LINEAR_GAIN,
    SLOPE,
    Basis,
    BasisHead,
    BottleneckBlock,
    FilteredResample,
    PlainBlock,
    Unflatten,
    initialise,
)
from genworker.families.patches import PatchConv2d, PatchConvTranspose2d


class StackConfig(Spec):
    """Shape of a convolutional stack.

    ``widths`` are channels from the coarsest grid to the image; each further entry doubles the resolution.
    """

    block: Literal["plain", "bottleneck"] = "plain"
    widths: Annotated[tuple[Annotated[int, Field(ge=4, le=8192)], ...], Field(min_length=1, max_length=9)] = (
        128,
        64,
        32,
    )
    blocks: Annotated[int, Field(ge=0, le=16)] | tuple[Annotated[int, Field(ge=0, le=16)], ...] = Field(
        1, description="residual blocks per stage: one number, or one per entry of widths"
    )
    patch: Literal[1, 2, 4] = Field(
        1, description="pixels per side that the convolution next to the image turns into one feature; 2 is fast"
    )
    group_width: Annotated[int, Field(ge=1)] = Field(
        16, description="channels per group of a bottleneck's 3x3 convolution"
    )
    float32_stages: Annotated[int, Field(ge=0, le=9)] = Field(
        0, description="coarsest stages that stay in float32 when training.precision is bfloat16; R3GAN has 1"
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
        """The smallest grid that covers an image of ``height`` x ``width``.

        Raises:
            UsageError: even one cell would be more than twice as large as the image.
        """
        scale = config.patch * 2 ** (len(config.widths) - 1)
        if scale > 2 * max(height, width):
            raise UsageError(
                f"widths {list(config.widths)} with patch {config.patch}: {len(config.widths) - 1} doublings make {scale} "
                f"pixels of one cell, more than twice the image of {height}x{width}; give fewer widths or a smaller patch"
            )
        return cls(-(-height // scale), -(-width // scale), scale)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width before cropping."""
        return self.height * self.scale, self.width * self.scale


class _Stage(nn.Module):
    """Layers that share a resolution; in float32 whatever the precision around them, where that is asked for."""

    def __init__(self, *layers: nn.Module, float32: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.float32 = float32

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in turn."""
        if self.float32:
            # Weights are float32 in training; a served network may be of bfloat16 as a whole.
            weight = next(self.parameters(), None)
            with torch.autocast(x.device.type, enabled=False):
                return self._apply_layers(x if weight is None else x.to(weight.dtype))
        return self._apply_layers(x)

    def _apply_layers(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _blocks(channels: int, count: int, config: StackConfig) -> list[nn.Module]:
    total = sum(blocks for _, blocks in config.stages)
    gain = max(1, total) ** -0.25  # Fix-up (Zhang et al. 2019) for residual branches of two weight layers, as in R3GAN
    if config.block == "plain":
        return [PlainBlock(channels, gain) for _ in range(count)]
    return [BottleneckBlock(channels, gain, num_groups(channels, config.group_width)) for _ in range(count)]


def _up(wide: int, narrow: int, config: StackConfig) -> list[nn.Module]:
    if config.block == "plain":
        return [nn.LeakyReLU(SLOPE), initialise(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))]
    return [FilteredResample(wide, narrow, up=True)]


def _down(narrow: int, wide: int, config: StackConfig) -> list[nn.Module]:
    if config.block == "plain":
        return [nn.LeakyReLU(SLOPE), initialise(nn.Conv2d(narrow, wide, 4, stride=2, padding=1))]
    return [FilteredResample(narrow, wide, up=False)]


class UpStack(nn.Module):
    """A feature vector to an image: a map to the coarsest grid, blocks and doublings, one convolution, a crop."""

    def __init__(self, in_features: int, channels: int, height: int, width: int, config: StackConfig) -> None:
        super().__init__()
        self.grid = Grid.covering(height, width, config)
        self.size = (height, width)
        self.plain = config.block == "plain"
        (current, count), *finer = config.stages
        start: list[nn.Module]
        if self.plain:
            start = [
                initialise(nn.Linear(in_features, current * self.grid.height * self.grid.width)),
                Unflatten(current, self.grid.height, self.grid.width),
            ]
        else:
            start = [Basis(in_features, current, self.grid.height, self.grid.width)]
        stages = [_Stage(*start, *_blocks(current, count, config), float32=config.float32_stages > 0)]
        for number, (width_of_stage, count_of_stage) in enumerate(finer, start=1):
            layers = [*_up(current, width_of_stage, config), *_blocks(width_of_stage, count_of_stage, config)]
            stages.append(_Stage(*layers, float32=config.float32_stages > number))
            current = width_of_stage
        self.stages = nn.Sequential(*stages)
        gain = 0.5 if self.plain else LINEAR_GAIN
        if config.patch == 1:
            size = 3 if self.plain else 1
            self.to_image = initialise(nn.Conv2d(current, channels, size, padding=size // 2), gain)
        else:
            self.to_image = initialise(PatchConvTranspose2d(current, channels, config.patch), gain)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_features] to [N, channels, height, width], unbounded."""
        x: Tensor = self.stages(features)
        x = self.to_image(F.leaky_relu(x, SLOPE) if self.plain else x)
        top, left = ((padded - size) // 2 for padded, size in zip(self.grid.padded, self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]]


class DownStack(nn.Module):
    """An image to a feature vector: a pad, one convolution, blocks and halvings, a linear map of the coarsest grid."""

    def __init__(self, channels: int, height: int, width: int, out_features: int, config: StackConfig) -> None:
        super().__init__()
        self.grid = Grid.covering(height, width, config)
        self.size = (height, width)
        plain = config.block == "plain"
        (current, count), *coarser = config.stages[::-1]
        gain = 1.0 if plain else LINEAR_GAIN
        if config.patch == 1:
            size = 3 if plain else 1
            self.from_image = initialise(nn.Conv2d(channels, current, size, padding=size // 2), gain)
        else:
            self.from_image = initialise(PatchConv2d(channels, current, config.patch), gain)
        stages = [_Stage(*_blocks(current, count, config), float32=config.float32_stages > len(coarser))]
        for number, (width_of_stage, count_of_stage) in enumerate(coarser, start=1):
            layers = [*_down(current, width_of_stage, config), *_blocks(width_of_stage, count_of_stage, config)]
            stages.append(_Stage(*layers, float32=config.float32_stages > len(coarser) - number))
            current = width_of_stage
        self.stages = nn.Sequential(*stages)
        # The last map is small, and its sums are what losses and penalties stand on: always in float32.
        if plain:
            linear = initialise(nn.Linear(current * self.grid.height * self.grid.width, out_features))
            self.end = _Stage(nn.LeakyReLU(SLOPE), nn.Flatten(), linear, float32=True)
        else:
            self.end = _Stage(BasisHead(current, self.grid.height, self.grid.width, out_features), float32=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, channels, height, width] to [N, out_features]."""
        rest_h, rest_w = (padded - size for padded, size in zip(self.grid.padded, self.size, strict=True))
        if rest_h or rest_w:
            images = F.pad(images, (rest_w // 2, rest_w - rest_w // 2, rest_h // 2, rest_h - rest_h // 2), value=-1.0)
        x = self.from_image(images).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.end(self.stages(x))
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
