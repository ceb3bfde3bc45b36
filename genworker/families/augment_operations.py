"""What an augmentation does to images: move and turn, recolour, cut out, each decided by one row of numbers per image.

In: images [N, C, H, W] and a `Draw`. Out: images of the same shape, linear in the pixels, so that derivatives of any order
exist. The operations and their strengths are those of Karras et al. 2020, arXiv:2006.06676, appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NUM_UNIFORMS = 32
"""Uniform numbers that one image takes."""

_TRANSLATE_SHARE = 0.125  # of the image's size: the largest whole-pixel shift, and the deviation of the fractional one
_SCALE_LOG2, _STRETCH_LOG2 = 0.2, 0.2  # deviations of log2 of the two scalings
_BRIGHTNESS, _CONTRAST_LOG2, _SATURATION_LOG2 = 0.2, 0.5, 1.0
_CUTOUT_SHARE = 0.5  # of the image's size


class Draw:
    """One row of uniform numbers [N, NUM_UNIFORMS] per image, by the column; every column has one use."""

    def __init__(self, uniform: Tensor, p: Tensor) -> None:
        self._uniform, self.p = uniform, p

    def flat(self, column: int) -> Tensor:
        """Uniform in [0, 1), [N]."""
        return self._uniform[:, column]

    def normal(self, column: int) -> Tensor:
        """Standard normal, [N]."""
        value: Tensor = torch.special.ndtri(self._uniform[:, column] + 2.0**-25)
        return value

    def gated(self, column: int, value: Tensor, neutral: float, p: Tensor | None = None) -> Tensor:
        """``value`` with probability p, by the uniform number of ``column``, else ``neutral``."""
        return torch.where(self._uniform[:, column] < (self.p if p is None else p), value, neutral)


def inverse_affine(draw: Draw, size: torch.Size, *, blit: bool, geometry: bool) -> Tensor:
    """Matrices [N, 2, 3] from pixel positions of the result (x, y, 1), measured from the centre, to those of the original."""
    height, width = size
    count = len(draw.flat(0))
    matrix = torch.eye(3, device=draw.p.device).expand(count, 3, 3)
    if blit:
        mirror = draw.gated(0, 1.0 - 2.0 * (draw.flat(1) * 2).floor(), 1.0)
        matrix = matrix @ _scaling(mirror, torch.ones_like(mirror))
        turns = (draw.flat(3) * 4).floor() if height == width else (draw.flat(3) * 2).floor() * 2
        turns = draw.gated(2, turns, 0.0).long()
        # Exact quarter turns, so that pixels are moved and not interpolated.
        cosine, sine = turns.new_tensor([1, 0, -1, 0])[turns].float(), turns.new_tensor([0, 1, 0, -1])[turns].float()
        matrix = matrix @ _turning(cosine, sine)
        shift_x = ((draw.flat(5) * 2 - 1) * _TRANSLATE_SHARE * width).round()
        shift_y = ((draw.flat(6) * 2 - 1) * _TRANSLATE_SHARE * height).round()
        matrix = matrix @ _shifting(draw.gated(4, shift_x, 0.0), draw.gated(4, shift_y, 0.0))
    if geometry:
        scale = draw.gated(7, torch.exp2(draw.normal(8) * _SCALE_LOG2), 1.0)
        matrix = matrix @ _scaling(1 / scale, 1 / scale)
        # Two turns around the stretch, each with a probability such that at least one happens with probability p.
        once = 1 - torch.sqrt((1 - draw.p).clamp(0, 1))
        angle = draw.gated(9, (draw.flat(10) * 2 - 1) * math.pi, 0.0, once)
        matrix = matrix @ _turning(angle.cos(), angle.sin())
        stretch = draw.gated(11, torch.exp2(draw.normal(12) * _STRETCH_LOG2), 1.0)
        matrix = matrix @ _scaling(1 / stretch, stretch)
        angle = draw.gated(13, (draw.flat(14) * 2 - 1) * math.pi, 0.0, once)
        matrix = matrix @ _turning(angle.cos(), angle.sin())
        shift_x = draw.gated(15, draw.normal(16) * _TRANSLATE_SHARE * width, 0.0)
        shift_y = draw.gated(15, draw.normal(17) * _TRANSLATE_SHARE * height, 0.0)
        matrix = matrix @ _shifting(shift_x, shift_y)
    return matrix[:, :2]


def resample(images: Tensor, inverse: Tensor) -> Tensor:
    """Images [N, C, H, W] under affine maps [N, 2, 3] of `inverse_affine`, bilinear, mirrored beyond the edges.

    A sum of four gathers: torch's grid_sample has no second derivative, which gradient penalties need.
    """
    count, channels, height, width = images.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) - (height - 1) / 2,
        torch.arange(width, device=images.device) - (width - 1) / 2,
        indexing="ij",
    )
    positions = torch.stack([x.reshape(-1), y.reshape(-1), torch.ones_like(x).reshape(-1)])  # [3, HW]
    source = (inverse[:, :, :, None] * positions[None, None]).sum(2)  # [N, 2, HW]
    at_x, at_y = source[:, 0] + (width - 1) / 2, source[:, 1] + (height - 1) / 2
    left, top = at_x.floor(), at_y.floor()
    share_x, share_y = at_x - left, at_y - top
    flat = images.flatten(2)
    out = torch.zeros_like(flat)
    for step_x, weight_x in ((0, 1 - share_x), (1, share_x)):
        column = _mirrored(left.long() + step_x, width)
        for step_y, weight_y in ((0, 1 - share_y), (1, share_y)):
            index = _mirrored(top.long() + step_y, height) * width + column  # [N, HW]
            corner = flat.gather(2, index[:, None].expand(-1, channels, -1))
            out = out + corner * (weight_x * weight_y)[:, None]
    return out.view(count, channels, height, width)


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions folded back into [0, size) at the outer pixels, which are not repeated."""
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.where(index < size, index, period - index)


def recolour(images: Tensor, draw: Draw) -> Tensor:
    """Brightness, contrast, inversion; in colour images hue and saturation too. A fourth or second channel, alpha, stays."""
    brightness = draw.gated(18, draw.normal(19) * _BRIGHTNESS, 0.0)
    contrast = draw.gated(20, torch.exp2(draw.normal(21) * _CONTRAST_LOG2), 1.0)
    inverted = draw.gated(22, (draw.flat(23) * 2).floor(), 0.0)
    channels = images.shape[1]
    if channels < 3:
        sign = contrast * (1 - 2 * inverted)
        grey = images[:, :1] * sign[:, None, None, None] + (brightness * sign)[:, None, None, None]
        return torch.cat([grey, images[:, 1:]], dim=1)
    angle = draw.gated(24, (draw.flat(25) * 2 - 1) * math.pi, 0.0)
    saturation = draw.gated(26, torch.exp2(draw.normal(27) * _SATURATION_LOG2), 1.0)
    one = torch.eye(3, device=images.device)[None]
    luma = torch.full((1, 3, 3), 1 / 3, device=images.device)  # the projection onto the grey axis (1, 1, 1)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=images.device) / math.sqrt(3)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turn = cosine * one + sine * cross + (1 - cosine) * luma  # Rodrigues' formula, around the grey axis
    mix = luma + (one - luma) * saturation[:, None, None]
    flip = one - 2 * luma * inverted[:, None, None]
    matrix = mix @ turn @ flip * contrast[:, None, None]  # [N, 3, 3]
    lit = images[:, :3] + brightness[:, None, None, None]
    # Sums and products instead of matmul, so that no lower precision steps in.
    colour = (matrix[:, :, :, None, None] * lit[:, None]).sum(2)
    return torch.cat([colour, images[:, 3:]], dim=1)


def cut_out(images: Tensor, draw: Draw) -> Tensor:
    """A rectangle of half the image's size, anywhere, set to grey (0)."""
    height, width = images.shape[2:]
    size = draw.gated(28, torch.full_like(draw.flat(28), _CUTOUT_SHARE), 0.0)
    rows = (torch.arange(height, device=images.device) + 0.5) / height
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    in_rows = (rows[None] - draw.flat(29)[:, None]).abs() < size[:, None] / 2
    in_columns = (columns[None] - draw.flat(30)[:, None]).abs() < size[:, None] / 2
    hole = in_rows[:, :, None] & in_columns[:, None, :]
    return images * (~hole)[:, None]


def _rows(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Matrices [N, 3, 3] of two rows of three [N] each, and (0, 0, 1)."""
    zero, one = torch.zeros_like(first[0]), torch.ones_like(first[0])
    return torch.stack([*first, *second, zero, zero, one], dim=1).view(-1, 3, 3)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return _rows((x, zero, zero), (zero, y, zero))


def _turning(cosine: Tensor, sine: Tensor) -> Tensor:
    zero = torch.zeros_like(cosine)
    return _rows((cosine, sine, zero), (-sine, cosine, zero))


def _shifting(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _rows((one, zero, -x), (zero, one, -y))
