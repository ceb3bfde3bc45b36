"""Which image each draw of a run takes, and which images are never drawn."""

from __future__ import annotations

import numpy as np

from genworker.schema import Int64Array

_MAX_HELD_OUT = 1000


def held_out_indices(length: int, share: float) -> Int64Array:
    """The images that are never trained on, rising, evenly spread: ``share`` of ``length``, at most 1,000."""
    count = min(int(length * share), _MAX_HELD_OUT)
    return (np.arange(count, dtype=np.int64) * length) // max(1, count)
