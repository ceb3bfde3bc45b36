"""Processes that are forked from one without threads, in which everything heavy is loaded already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).parents[2]


class Forked:
    """``target(*args)`` in a process of its own; for use by several threads.

    multiprocessing reads a process's exit code once, and `Process.start` reads those of all other processes: a thread that
    reads one at the same time would be told 255. So one thread at a time starts or asks.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        with self._one_at_a_time:
            self._process = _context().Process(target=target, args=args)
            self._process.start()

    @property
    def exit_code(self) -> int | None:
        """How it ended, minus the signal that ended it; None while it runs."""
        with self._one_at_a_time:
            code: int | None = self._process.exitcode
            return code

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code; None if it still runs after so many seconds."""
        wait([self._process.sentinel], seconds)
        return self.exit_code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    before = os.environ.get("PYTHONPATH")
    # The server imports before it learns of our path.
    os.environ["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{before or ''}"
    try:
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
