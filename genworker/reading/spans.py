"""Sets of sample indices as rising lists of half-open ranges, and how readers share them.

In and out: ``[(0, 100), (250, 300)]``. Plain arithmetic; it knows no dataset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Spans = list[tuple[int, int]]


def count(spans: Spans) -> int:
    """How many indices there are."""
    return sum(stop - first for first, stop in spans)


def share(spans: Spans, part: int, num_parts: int) -> Spans:
    """Part ``part`` of ``num_parts``: neighbours stay together, parts differ by one index at most, none is in two."""
    total = count(spans)
    begin, end = total * part // num_parts, total * (part + 1) // num_parts
    mine: Spans = []
    before = 0
    for first, stop in spans:
        lower, upper = max(begin - before, 0), min(end - before, stop - first)
        if lower < upper:
            mine.append((first + lower, first + upper))
        before += stop - first
    return mine


def without(spans: Spans, first: int, stop: int) -> Spans:
    """All indices but those in [first, stop)."""
    kept: Spans = []
    for lower, upper in spans:
        kept += [pair for pair in ((lower, min(upper, first)), (max(lower, stop), upper)) if pair[0] < pair[1]]
    return kept


def contains(spans: Spans, index: int) -> bool:
    """Whether ``index`` is in one of the ranges."""
    return any(first <= index < stop for first, stop in spans)


def union(spans: Iterable[tuple[int, int]]) -> Spans:
    """The same indices in order, touching ranges joined. Raises ValueError where two ranges overlap."""
    joined: Spans = []
    for first, stop in sorted(spans):
        if joined and first < joined[-1][1]:
            raise ValueError(f"sample {first} is in two ranges")
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        elif first < stop:
            joined.append((first, stop))
    return joined
