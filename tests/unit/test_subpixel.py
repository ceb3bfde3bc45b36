"""Subpixel layers: the same function as the transposed convolutions that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genworker.sampling.subpixel import SubpixelConv2d, has_layers_for_it, with_subpixel_layers


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_the_transposed_convolution(stride: int, channels: int, bias: bool) -> None:
    """Every pixel, those at the edges too, differs by no more than the rounding of sums."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, channels, 2 * stride, stride, stride // 2, bias=bias)
    x = torch.randn(2, 5, 6, 3)
    with torch.no_grad():
        torch.testing.assert_close(SubpixelConv2d(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_only_layers_that_it_can_compute_are_replaced() -> None:
    """Other kernels, many channels and other layers stay; nested ones are found."""
    wide, odd = nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.ConvTranspose2d(4, 3, 3, 2, 1)
    module = nn.Sequential(wide, nn.LeakyReLU(), nn.Sequential(odd, nn.ConvTranspose2d(3, 3, 4, 2, 1)))
    assert has_layers_for_it(module)
    inner = with_subpixel_layers(module)[2]
    assert module[0] is wide
    assert inner[0] is odd
    assert isinstance(inner[1], SubpixelConv2d)
    assert not has_layers_for_it(module)
