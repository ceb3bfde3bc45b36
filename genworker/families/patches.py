"""The layers between an image and the first grid of features, s pixels per side to a cell.

Both hold the weights of a convolution of kernel 2 s, stride s and padding s / 2 and compute it as one without a stride, on
rearranged pixels (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"). CPU libraries compute
what has only the channels of an image far below their speed, above all backwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchConv2d(nn.Conv2d):
    """Pixels to cells: `nn.Conv2d` of kernel 2 s, stride s, padding s / 2."""

    def __init__(self, channels: int, features: int, patch: int) -> None:
        super().__init__(channels, features, 2 * patch, patch, patch // 2)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, s H, s W] to [N, features, H, W]; s divides the image's size."""
        s = self.patch
        cells = F.pixel_unshuffle(F.pad(x, (s // 2,) * 4), s)  # [N, channels * s * s, H + 1, W + 1]
        cells = cells.contiguous(memory_format=torch.channels_last)
        taps = self.weight.reshape(self.out_channels, self.in_channels, 2, s, 2, s)
        return F.conv2d(cells, taps.permute(0, 1, 3, 5, 2, 4).flatten(1, 3), self.bias)


class PatchConvTranspose2d(nn.ConvTranspose2d):
    """Cells to pixels: `nn.ConvTranspose2d` of kernel 2 s, stride s, padding s / 2."""

    def __init__(self, features: int, channels: int, patch: int) -> None:
        super().__init__(features, channels, 2 * patch, patch, patch // 2)
        self.patch = patch

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, features, H, W] to [N, channels, s H, s W]."""
        assert output_size is None
        assert self.bias is not None
        s = self.patch
        # Pixel p of a cell sees the cell before, its own and the one after through taps p + s / 2 + s, + 0 and - s of the
        # kernel, those outside of it being zero: a 3x3 convolution to all s * s pixels of a cell.
        taps = F.pad(self.weight.transpose(0, 1), (s // 2,) * 4)  # [channels, features, 3 s, 3 s]
        taps = taps.reshape(self.out_channels, self.in_channels, 3, s, 3, s).flip(2, 4).permute(0, 3, 5, 1, 2, 4)
        pixels = F.conv2d(x, taps.flatten(0, 2), self.bias.repeat_interleave(s * s), padding=1)
        return F.pixel_shuffle(pixels, s)
