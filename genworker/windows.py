"""One function over many things, side by side in threads.

In: a function and any number of things. Out: its results, in their order. No more than a window of calls is ever pending, so
that a million of them cost no memory; what one raises is raised in its place, and what was not begun then is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_windows(function: Callable[[T], R], things: Iterable[T], num_threads: int, window: int) -> Iterator[R]:
    """Yield ``function(thing)`` for each thing, computed by ``num_threads`` threads, ``window`` of them at a time."""
    left = iter(things)
    with ThreadPoolExecutor(num_threads) as pool:
        while batch := list(itertools.islice(left, window)):
            yield from pool.map(function, batch)
