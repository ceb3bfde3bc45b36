"""Layers between image and features: the same functions as the strided convolutions whose weights they hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genworker.families.blocks import DownStack, StackConfig, UpStack
from genworker.families.patches import PatchConv2d, PatchConvTranspose2d

PATCHES = pytest.mark.parametrize("patch", [2, 4])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def _all_of(layer: nn.Module, x: Tensor, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output, gradients, and gradients of the squared gradient of the input, which penalties need."""
    x = x.clone().requires_grad_()
    out = compute(x)
    (by_input,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(out.sin().sum(), wanted, retain_graph=True)
    return [out, *first, *torch.autograd.grad(by_input.square().sum(), wanted)]


@PATCHES
@CHANNELS
def test_pixels_to_cells_is_the_strided_convolution(patch: int, channels: int) -> None:
    """Features, gradients and their gradients differ by no more than the rounding of sums, at the edges too."""
    torch.manual_seed(0)
    layer = PatchConv2d(channels, 5, patch)
    x = torch.randn(2, channels, 6 * patch, 3 * patch)
    plain = _all_of(layer, x, lambda x: nn.Conv2d.forward(layer, x))
    assert plain[0].shape == (2, 5, 6, 3)
    torch.testing.assert_close(_all_of(layer, x, layer), plain, atol=1e-4, rtol=1e-4)


@PATCHES
@CHANNELS
def test_cells_to_pixels_is_the_transposed_convolution(patch: int, channels: int) -> None:
    """Pixels, gradients and their gradients differ by no more than the rounding of sums, at the edges too."""
    torch.manual_seed(0)
    layer = PatchConvTranspose2d(5, channels, patch)
    x = torch.randn(2, 5, 6, 3)
    plain = _all_of(layer, x, lambda x: nn.ConvTranspose2d.forward(layer, x))
    assert plain[0].shape == (2, channels, 6 * patch, 3 * patch)
    torch.testing.assert_close(_all_of(layer, x, layer), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", ["plain", "bottleneck"])
@pytest.mark.parametrize("patch", [1, 2])
@CHANNELS
def test_features_are_channels_last_all_the_way(block: str, patch: int, channels: int) -> None:
    """No layer falls back to the slow layout, or between the two, whatever the images and weights are laid out in."""
    config = StackConfig.parse({"block": block, "patch": patch, "widths": [16, 8], "blocks": 1}, origin="test")
    up, down = UpStack(7, channels, 12, 8, config), DownStack(channels, 12, 8, 7, config)
    seen: list[Tensor] = []
    for stack in (up, down):
        for layer in stack.stages.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    down(up(torch.randn(2, 7)))
    assert len(seen) > 8
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
