"""A test module run by several processes at once, one per rank of a process group."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = 600.0


def run_ranks(program: str, folder: Path, count: int) -> None:
    """Run the Python file ``program`` with each rank below ``count`` and ``folder`` as arguments; all must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=_SECONDS)
            assert worker.returncode == 0, errors[-4000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
