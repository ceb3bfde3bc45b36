"""Clocks for jobs of many processes: wall clock, and the CPU time of a process and all that descend from it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.benchmarks.generate.models import PLAIN_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

# A second, smaller job of the same kind: the difference of both is the rate without start-up, the same way for all.
SMALL_SHARE = 8


_LOOK_SECONDS = 0.2


class Clock:
    """Adds ``<name>_seconds`` and ``<name>_cpu_seconds`` of what happens inside the block to ``found``.

    A thread looks at all processes again and again, because the time of one that ended is found nowhere afterwards.
    """

    def __init__(self, name: str, found: dict[str, float]) -> None:
        self._name, self._found = name, found
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._before = family()
        self._last = dict(self._before)
        self._looker.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._found[f"{self._name}_seconds"] = time.perf_counter() - self._start
        self._over.set()
        self._looker.join()
        self._last |= family()
        spent = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._last.items())
        self._found[f"{self._name}_cpu_seconds"] = spent

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._last |= family()


def family() -> dict[int, float]:
    """This process and all that descend from it: process id -> its own CPU seconds."""
    seen: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended in between
        # After the name: state, parent, ...; utime and stime are fields 11 and 12.
        seen[int(entry.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    found = {os.getpid()}
    while more := {pid for pid, (parent, _) in seen.items() if parent in found} - found:
        found |= more
    return {pid: seen[pid][1] / os.sysconf("SC_CLK_TCK") for pid in found}


def job_sizes(samples: int, *, cold: bool) -> Iterator[tuple[str, int]]:
    """Jobs of one cluster by name; unless ``cold``, the first one finds cold files and caches and counts for nothing."""
    if not cold:
        yield from (("warm", PLAIN_BATCH), ("small", samples // SMALL_SHARE))
    yield "job", samples


def start_ray() -> None:
    """Start a local cluster as `genworker` does, with room for Ray Data's own tasks beside two actors."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=max(4, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
