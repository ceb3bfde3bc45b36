"""What codecs ask of the pixels that they are given, and what their libraries ask of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from genworker.schema import ImageSchema, Pixels


def check_pixels(pixels: Pixels, shape: tuple[int, int, int]) -> None:
    """Raise ValueError, the caller's mistake, unless ``pixels`` is uint8 of ``shape`` (height, width, channels)."""
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; this codec was made for uint8 {shape}")


def values_in_blocks(schema: ImageSchema, channels: int, block: int) -> int:
    """Values of an image of so many channels once its sides are filled up to whole blocks, which lossy codecs store."""
    height, width = (-(-side // block) * block for side in (schema.height, schema.width))
    return channels * height * width


def as_plain(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """The same pixels, contiguous, as ``shape``; a copy only where they lie otherwise.

    imagecodecs looks at the strides of axes of length one too, which numpy leaves as they came; reshaping resets them.
    """
    return np.ascontiguousarray(pixels).reshape(-1).reshape(shape)
