"""Images to pixels: the one place where what a network makes becomes eight bits."""

from __future__ import annotations

import torch
from torch import Tensor

from genworker.schema import Pixels


def quantise(images: Tensor) -> Pixels:
    """Turn images [N, C, H, W], nominally in [-1, 1], into pixels uint8 [N, H, W, C]; rounds, and clamps what lies outside."""
    return to_uint8(images).cpu().numpy()


def to_uint8(images: Tensor) -> Tensor:
    """The same on the images' own device, so that a quarter of the bytes has to leave it."""
    scaled = images.float().mul(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()
