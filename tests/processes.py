"""Programs that tests start, signal and clean up after, all by process id.

A `Program` runs with an environment of its own: no RAY_ or AWS_ variable of ours, and an empty HOME. Ray's processes leave
their parent's process group and, when the driver is killed, their parent; so they are found by a mark in the environment
that they inherit, and by descent.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Generous: Ray's workers run at low priority, and other work on the machine slows them.
FINISH_SECONDS = 240.0
# Most of Ray notices a dead driver at once; its two agents ask only once a minute.
LEFTOVER_SECONDS = 2.0

_MARK = "GENWORKER_TEST_MARK"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Identity:
    """One process, told from a later one with the same id by when it started (clock ticks since boot)."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        there = _stat(self.pid)
        return there is not None and there[2] == self.started and there[0] not in "ZX"


@dataclass
class Program:
    """A running command: its process, and files with all that it printed."""

    process: subprocess.Popen[bytes]
    mark: str
    stdout_path: Path
    stderr_path: Path
    home: Path
    started: float = field(default_factory=time.monotonic)
    leftovers: set[Identity] = field(default_factory=set)

    @property
    def stdout(self) -> str:
        """What was printed so far."""
        return self.stdout_path.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What was printed to standard error so far."""
        return self.stderr_path.read_text(encoding="utf-8")

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout=FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args!r} still runs; it printed:\n{self.stdout}{self.stderr}") from None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds; fail when the program ends before that."""
        deadline = time.monotonic() + FINISH_SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended too soon; it printed:\n{self.stdout}{self.stderr}"
            assert time.monotonic() < deadline, f"never came so far; it printed:\n{self.stdout}{self.stderr}"
            time.sleep(0.005)

    def family(self) -> set[Identity]:
        """The process, its descendants, and whatever else inherited its mark."""
        found = _marked(f"{_MARK}={self.mark}".encode()) | {self.process.pid}
        return {Identity(pid, stat[2]) for pid in found | descendants(found) if (stat := _stat(pid)) is not None}

    def kill(self) -> int:
        """SIGKILL the program, and nothing that it started; returns the exit code."""
        self.leftovers |= self.family()
        self.process.kill()
        return self.wait()

    def interrupt(self) -> int:
        """Do what Ctrl-C in a terminal does: SIGINT to the whole process group; returns the exit code."""
        self.leftovers |= self.family()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def finish(self) -> None:
        """End what still runs: Ray's processes by themselves first, what remains by its id."""
        with contextlib.suppress(ProcessLookupError):
            self.leftovers |= self.family()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while (alive := [identity for identity in self.leftovers if identity.alive()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for identity in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)


@contextlib.contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Program]:
    """Run a program in a process group of its own; ``command[0]`` may be a script of this Python's environment."""
    folder = folder / f"program-{secrets.token_hex(4)}"
    home = folder / "home"
    home.mkdir(parents=True)
    mark = secrets.token_hex(8)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    # Nothing may be sent anywhere, and a wide terminal keeps lines whole.
    variables |= {_MARK: mark, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "400"}
    variables["RAY_prestart_worker_first_driver"] = "0"  # as genworker starts Ray: no workers that nobody asked for
    variables |= {"PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"} | dict(environment or {})
    stdout_path, stderr_path = folder / "stdout.txt", folder / "stderr.txt"
    # Files, not pipes: Ray's processes keep a pipe open after the program ended.
    with stdout_path.open("wb") as stdout, stderr_path.open("wb") as stderr:
        script = _BIN / command[0]
        process = subprocess.Popen(
            [str(script) if script.exists() else command[0], *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=variables,
            cwd=cwd or folder,
            start_new_session=True,
        )
    program = Program(process, mark, stdout_path, stderr_path, home)
    try:
        yield program
    finally:
        program.finish()


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Program:
    """Run a program to its end."""
    with running(command, folder, environment, cwd) as program:
        program.wait()
    return program


def descendants(roots: set[int]) -> set[int]:
    """Process ids of all children of ``roots``, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if (stat := _stat(pid)) is not None:
            children.setdefault(int(stat[1]), []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        new = set(children.get(waiting.pop(), [])) - found
        found |= new
        waiting += new
    return found


def titled(title: str) -> list[int]:
    """Ids of our descendants whose command line starts with ``title``: Ray calls an actor's process ray::ItsClass."""
    found = []
    for pid in sorted(descendants({os.getpid()})):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                found.append(pid)
    return found


def _marked(mark: bytes) -> set[int]:
    found = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _stat(pid: int) -> tuple[str, str, str] | None:
    """State, parent's id and start time, or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, so fields are counted from behind it.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[1], fields[19]
