"""What every codec asks of the pixels that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from genworker.schema import Pixels


def check_pixels(pixels: Pixels, shape: tuple[int, int, int]) -> None:
    """Raise ValueError, the caller's mistake, unless ``pixels`` is uint8 of ``shape`` (height, width, channels)."""
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; this codec was made for uint8 {shape}")
