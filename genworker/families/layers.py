"""The layers that convolutional stacks are made of: residual blocks and resampling by two, without normalisation.

Features [N, C, H, W] in and out. The last convolution of a block starts at zero, so that every block starts as the
identity; a sample never depends on its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of every leaky ReLU
LINEAR_GAIN = math.sqrt((1.0 + SLOPE**2) / 2.0)  # keeps the variance where no activation follows


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

    def __init__(self, channels: int, gain: float, num_groups: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.expand = initialise(nn.Conv2d(channels, inner, 1, bias=False), gain)
        self.first_bias = nn.Parameter(torch.zeros(inner, 1, 1))
        self.spread = initialise(nn.Conv2d(inner, inner, 3, padding=1, groups=num_groups, bias=False), gain)
        self.second_bias = nn.Parameter(torch.zeros(inner, 1, 1))
        self.last = initialise(nn.Conv2d(inner, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = F.leaky_relu(self.expand(x) + self.first_bias, SLOPE)
        y = F.leaky_relu(self.spread(y) + self.second_bias, SLOPE)
        out: Tensor = x + self.last(y)
        return out


class FilteredResample(nn.Module):
    """Twice or half the resolution with the filter [1, 2, 1], and a 1x1 convolution when the width changes."""

    kernel: Tensor

    def __init__(self, wide: int, narrow: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.channels = nn.Conv2d(wide, narrow, 1, bias=False) if wide != narrow else nn.Identity()
        if isinstance(self.channels, nn.Conv2d):
            initialise(self.channels, LINEAR_GAIN)
        # A constant of no state: here also when networks are built without memory, on torch's meta device.
        taps = torch.tensor([1.0, 2.0, 1.0], device="cpu") / (2.0 if up else 4.0)
        self.register_buffer("kernel", taps[:, None] * taps[None, :], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, wide, H, W] to [N, narrow, 2 H, 2 W] or [N, narrow, H / 2, W / 2]; zeros stand beyond the edges."""
        if self.up:
            x = self.channels(x)
            kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
            return F.conv_transpose2d(x, kernel, stride=2, padding=1, output_padding=1, groups=x.shape[1])
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        out: Tensor = self.channels(F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1]))
        return out


class Unflatten(nn.Module):
    """A vector to a grid, laid out channels-last."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels * height * width] to [N, channels, height, width]."""
        return x.reshape(len(x), *self.shape).contiguous(memory_format=torch.channels_last)


class Basis(nn.Module):
    """A feature vector to the coarsest grid: one learned picture per channel, scaled by a linear map of the vector."""

    def __init__(self, in_features: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.pictures = nn.Parameter(torch.randn(channels, height, width))
        self.linear = initialise(nn.Linear(in_features, channels, bias=False), LINEAR_GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_features] to [N, channels, height, width], laid out channels-last."""
        scales: Tensor = self.linear(features)
        grid = self.pictures.to(scales.dtype) * scales[:, :, None, None]
        return grid.contiguous(memory_format=torch.channels_last)


class BasisHead(nn.Module):
    """The coarsest grid to features: one learned picture per channel is compared with it, then a linear map."""

    def __init__(self, channels: int, height: int, width: int, out_features: int) -> None:
        super().__init__()
        size = (height, width)
        self.compare = initialise(nn.Conv2d(channels, channels, size, groups=channels, bias=False), LINEAR_GAIN)
        self.linear = initialise(nn.Linear(channels, out_features, bias=False), LINEAR_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, height, width] to [N, out_features]."""
        out: Tensor = self.linear(self.compare(x).flatten(1))
        return out
