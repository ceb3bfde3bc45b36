"""Workers of a training run that are killed, or hang: the first costs a checkpoint interval, the second ends in time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from genworker.errors import TrainingError
from genworker.stores import open_store
from genworker.training import checkpoint, trainer
from tests.processes import titled
from tests.ray.runs import spec_for, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

WORKER = "ray::RayTrainWorker"
TIMEOUT_SECONDS = 12


class Running:
    """A training run in a thread, because `trainer.train` returns only at the end."""

    def __init__(self, url: str, **resources: Any) -> None:
        self.url, self.events, self.error = url, list[str](), None
        values = {"workers": 2, "collective_timeout_seconds": TIMEOUT_SECONDS} | resources
        self._spec = spec_for(resources=values)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            trainer.train(self._spec, self.url, on_event=self.events.append)
        except Exception as err:
            self.error: Exception | None = err

    def wait_for(self, condition: Callable[[], object], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._thread.is_alive() or condition(), f"ended too soon: {self.error}, {self.events}"
            assert time.monotonic() < deadline, f"never came so far: {self.events}"
            time.sleep(0.005)

    def end(self, seconds: float = 240.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"still runs: {self.events}"


def has_checkpoint(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(checkpoint.keys(open_store(url)))
    return False


def test_a_killed_worker_is_replaced_and_the_run_ends_in_the_same_bits(finished: str, tmp_path: Path) -> None:
    """SIGKILL of one of two workers: both start again from the newest checkpoint and end as if nothing had been."""
    run = Running(str(tmp_path / "run"))
    run.wait_for(lambda: has_checkpoint(run.url))
    os.kill(titled(WORKER)[-1], signal.SIGKILL)
    run.end()
    assert run.error is None
    assert any("2 workers go on from image" in event for event in run.events), run.events
    ours, theirs = weights_of(run.url), weights_of(finished)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_worker_that_hangs_ends_the_run_within_the_timeout(ray_cluster: int, tmp_path: Path) -> None:
    """A rank that stops answering in a collective: a clear end that names who waited, and the checkpoint to go on from."""
    run = Running(str(tmp_path / "run"), max_failures=0)
    run.wait_for(lambda: has_checkpoint(run.url))
    stopped = titled(WORKER)[-1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        run.end(TIMEOUT_SECONDS + 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert isinstance(run.error, TrainingError)
    # Either rank may have been given the process that is stopped here.
    lost = re.findall(r"^  rank ([01]): RuntimeError: .*gloo", str(run.error), re.MULTILINE)
    assert len(lost) == 1, run.error
    assert "go on from checkpoints/images-" in str(run.error)
