"""The most memory that a stretch of code takes, by Linux's own count of this process.

In: code in a ``with`` block. Out: how far its resident set grew beyond what it was, at its highest. What the allocators kept
from before and gave again is not counted.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_RESET_PEAK = "5"  # see proc(5), clear_refs


@dataclass
class Growth:
    """MiB that a block took at its highest; known when it has ended."""

    mib: float = 0.0


@contextmanager
def growth() -> Iterator[Growth]:
    """Measure the block, also one that ends with an error."""
    seen = Growth()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _mib("VmRSS")
    try:
        yield seen
    finally:
        seen.mib = _mib("VmHWM") - before


def _mib(field: str) -> float:
    found = re.search(rf"{field}:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
