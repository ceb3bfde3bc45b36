"""Rounds of chaos on a real Ray cluster: the command line as users run it, and signals to the processes of Ray.

In: a folder. Out: a head node that outlives the rounds, and scenarios like those without Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.scenarios import Outcome
from tests.datasets import published_digests, stored_shards
from tests.fakes.bundle import save_bundle
from tests.nodes import ENVIRONMENT, NODE
from tests.processes import Program, run, running
from tests.servers import free_port

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

NUM_SHARDS, SAMPLES_PER_SHARD = 80, 150
_NODES_THERE = (
    "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR'); sys.exit(len(ray.nodes()) < int(sys.argv[2]))"
)


@dataclass(frozen=True)
class RayGround:
    """What rounds on Ray share: a folder, a bundle, a head node, and the digests of an undisturbed run."""

    folder: Path
    bundle: str
    head: Program
    address: str
    reference: dict[str, str]

    def command(self, out: Path, actors: str = "1") -> list[str]:
        """The command that every run of a round repeats."""
        return _command(self.bundle, out, actors)

    def environment(self) -> dict[str, str]:
        """For a driver."""
        return {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}


@contextlib.contextmanager
def ray_ground_in(folder: Path) -> Iterator[RayGround]:
    """Start a head node with one CPU and run one job undisturbed."""
    bundle = save_bundle(str(folder / "tiny"))
    address = f"127.0.0.1:{free_port()}"
    command = ["ray", "start", "--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", *NODE]
    with running(command, folder, ENVIRONMENT) as head:
        _wait_for_nodes(address, 1, folder)
        ground = RayGround(folder, bundle, head, address, {})
        out = folder / "reference"
        done = run(ground.command(out), folder, ground.environment())
        assert done.process.returncode == 0, done.stderr
        ground.reference.update(published_digests(str(out)))
        assert len(ground.reference) == NUM_SHARDS + 2
        yield ground


def _command(bundle: str, out: Path, actors: str) -> list[str]:
    flags = {
        "num-samples": NUM_SHARDS * SAMPLES_PER_SHARD,
        "samples-per-shard": SAMPLES_PER_SHARD,
        "seed": 5,
        "actors": actors,
        "drain-timeout": 10,
    }
    return ["genworker", "generate", bundle, "--out", str(out), *(f"--{name}={value}" for name, value in flags.items())]


def _wait_for_nodes(address: str, count: int, folder: Path) -> None:
    for _ in range(20):
        if run(["python", "-c", _NODES_THERE, address, str(count)], folder, ENVIRONMENT).process.returncode == 0:
            return
    raise AssertionError(f"Ray at {address} never had {count} nodes")


@contextlib.contextmanager
def _job(ground: RayGround, rng: random.Random, out: Path, actors: str = "1") -> Iterator[Program]:
    """A job that has stored some share of its shards, drawn at random."""
    share = rng.uniform(0.02, 0.8)
    with running(ground.command(out, actors), ground.folder, ground.environment()) as program:
        program.wait_until(lambda: (out / "data").is_dir() and len(stored_shards(str(out))) >= share * NUM_SHARDS)
        yield program


def _conclude(ground: RayGround, out: Path, faults: int, error: str = "") -> Outcome:
    published = (out / "_SUCCESS").exists()
    if not published:
        again = run(ground.command(out), ground.folder, ground.environment())
        assert again.process.returncode == 0, again.stderr
    seen = published_digests(str(out))
    lost = [key for key, digest in ground.reference.items() if seen.get(key) != digest]
    return Outcome(faults, published, not published, len(lost), len(seen.keys() - ground.reference.keys()), error)


def _new(ground: RayGround) -> Path:
    return ground.folder / f"out-{secrets.token_hex(4)}"


def _actors(nodes: list[Program]) -> list[int]:
    """Process ids of shard actors on some nodes."""
    found = []
    for identity in {each for node in nodes for each in node.family()}:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{identity.pid}/cmdline").read_bytes().startswith(b"ray::ShardActor"):
                found.append(identity.pid)
    return sorted(found)


def ray_driver_killed(ground: RayGround, rng: random.Random) -> Outcome:
    """SIGKILL of the driver; its actors are ended by Ray some time later."""
    out = _new(ground)
    with _job(ground, rng, out) as program:
        assert program.kill() == -signal.SIGKILL
    return _conclude(ground, out, 1)


def ray_driver_terminated(ground: RayGround, rng: random.Random) -> Outcome:
    """SIGTERM of the driver: it ends within its grace period, with what ran stored and accounted for."""
    out = _new(ground)
    with _job(ground, rng, out) as program:
        program.leftovers |= program.family()
        program.process.terminate()
        assert program.wait() == 128 + signal.SIGTERM
        assert "run the same command again" in program.stderr
        assert "Traceback" not in program.stderr
    return _conclude(ground, out, 1, "exit code 143")


def ray_actors_killed(ground: RayGround, rng: random.Random) -> Outcome:
    """SIGKILL of an actor, twice; the pool replaces it and the job ends by itself."""
    out, kills = _new(ground), 0
    with _job(ground, rng, out) as program:
        for _ in range(2):
            here: list[int] = []
            while program.process.poll() is None and not here:
                here = _actors([ground.head])
            for pid in here[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        assert program.wait() == 0, program.stderr
    outcome = _conclude(ground, out, kills)
    assert outcome.published
    return outcome


def ray_node_killed(ground: RayGround, rng: random.Random) -> Outcome:
    """SIGKILL of every process of one of two nodes; the job ends on the other."""
    out = _new(ground)
    with running(["ray", "start", f"--address={ground.address}", *NODE], ground.folder, ENVIRONMENT) as second:
        _wait_for_nodes(ground.address, 2, ground.folder)
        with _job(ground, rng, out, "1:2") as program:
            for identity in second.family():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(identity.pid, signal.SIGKILL)
            assert program.wait() == 0, program.stderr
    outcome = _conclude(ground, out, 1)
    assert outcome.published
    return outcome


def ray_two_drivers(ground: RayGround, rng: random.Random) -> Outcome:
    """A second driver of the same plan begins while the first one works, as a cron tick that overlaps does."""
    out = _new(ground)
    with (
        running(["ray", "start", f"--address={ground.address}", *NODE], ground.folder, ENVIRONMENT),
        _job(ground, rng, out) as first,
    ):
        second = run(ground.command(out), ground.folder, ground.environment())
        assert first.wait() == 0, first.stderr
    assert second.process.returncode == 0, second.stderr
    outcome = _conclude(ground, out, 1)
    assert outcome.published
    return outcome


RAY_SCENARIOS: dict[str, Callable[[RayGround, random.Random], Outcome]] = {
    function.__name__.replace("_", " ").replace("ray", "Ray:", 1): function
    for function in (ray_driver_killed, ray_driver_terminated, ray_actors_killed, ray_node_killed, ray_two_drivers)
}
