"""All parts by name, and how one is measured: in a fresh process, some rounds in turn."""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from tests.benchmarks.generate.jobs import ours, script
from tests.benchmarks.generate.limits import engine_forward, plain_forward, stages
from tests.benchmarks.generate.ray_data import as_users_write_it, with_our_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Each is called with (bundle, samples, an empty folder) and returns numbers by name.
PARTS: dict[str, Callable[[str, int, Path], dict[str, float]]] = {
    "engine forward": engine_forward,
    "plain forward": plain_forward,
    "stages": stages,
    "generate": ours,
    "ray data": as_users_write_it,
    "ray data, our engine": with_our_engine,
    "script": script,
    "generate, cold": functools.partial(ours, cold=True),
    "ray data, cold": functools.partial(as_users_write_it, cold=True),
}


def measure(part: str, bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """Run one part in a fresh process; adds the whole wall time, from the start of the process to its end."""
    from genworker.cluster import ALLOCATOR_ENV

    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONWARNINGS": "ignore"}
    # Threads are each part's own matter: what a user's process gets by default, or one in our actors.
    environment.pop("OMP_NUM_THREADS", None)
    if part in {"engine forward", "stages"}:
        environment |= ALLOCATOR_ENV  # as our actors have it; the others get what a user's process has
    command = [sys.executable, "-m", "tests.benchmarks.generate", "--part", part]
    command += ["--bundle", bundle, "--samples", str(samples)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--folder", place], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        wall = time.perf_counter() - start
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_seconds": wall}


def rounds_of(
    name: str, url: str, samples: int, rounds: int, folder: Path, *, cold: bool
) -> dict[str, dict[str, float]]:
    """The medians of all parts' figures over interleaved rounds; whole processes from a cold start only if ``cold``."""
    parts = [part for part in PARTS if cold or not part.endswith(", cold")]
    seen: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
    for number in range(rounds):
        for part in parts:
            found = measure(part, url, samples, folder)
            seen[part].append(found)
            print(f"{name}: round {number + 1} of {rounds}: {part}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return {part: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for part, runs in seen.items()}
