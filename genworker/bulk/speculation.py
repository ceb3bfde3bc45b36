"""Which running tasks take so long that an idle actor should try them too.

In: how long finished attempts took. Out: an age from which a running one is a straggler. A second attempt is safe because
shards are committed create-only and any two attempts give equal bytes.
"""

from __future__ import annotations

import statistics
from collections import deque

_REMEMBERED = 255
_FEWEST = 3


class Stragglers:
    """The age at which an attempt counts as slow.

    Args:
        factor: how many times the median of the last finished attempts.
        least_seconds: below this nothing is slow, because a second attempt would only begin.
    """

    def __init__(self, factor: float = 2.0, least_seconds: float = 5.0) -> None:
        self._factor, self._least_seconds = factor, least_seconds
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def finished(self, seconds: float) -> None:
        """Note how long an attempt took from being given to its receipt."""
        self._seconds.append(seconds)

    @property
    def limit(self) -> float | None:
        """Seconds after which an attempt is slow; None while too few have finished to tell."""
        if len(self._seconds) < _FEWEST:
            return None
        return max(self._least_seconds, self._factor * statistics.median(self._seconds))
