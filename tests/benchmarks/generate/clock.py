"""Clocks for jobs of many processes: wall clock, and the CPU time of a process and all that descend from it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.benchmarks.generate.models import PLAIN_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

# A second, smaller job of the same kind: the difference of both is the rate without start-up, the same way for all.
SMALL_SHARE = 8


class Clock:
    """Adds ``<name>_seconds`` and ``<name>_cpu_seconds`` of what happens inside the block to ``found``."""

    def __init__(self, name: str, found: dict[str, float]) -> None:
        self._name, self._found = name, found

    def __enter__(self) -> Self:
        self._cpu = sum(family().values())
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._found[f"{self._name}_seconds"] = time.perf_counter() - self._start
        self._found[f"{self._name}_cpu_seconds"] = self.spent()

    def spent(self) -> float:
        """CPU seconds since the block began."""
        return sum(family().values()) - self._cpu


def family() -> dict[int, float]:
    """This process and all that descend from it: process id -> CPU seconds, with those of dead children waited for."""
    seen: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended in between
        # After the name: state, parent, ..., utime, stime, cutime, cstime are fields 11 to 14.
        seen[int(entry.name)] = (int(fields[1]), sum(int(field) for field in fields[11:15]))
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
