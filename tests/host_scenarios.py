"""What may happen to hosts while they work: one function per scenario, which plays it, checks what is left, and tells of it.

Used by tests and by the benchmark. A site is a head without processors, an object store and a worker host `one`; scenarios
add the host that something happens to. Every dataset is read whole and compared byte by byte with what its plan makes.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import yaml

from genworker.training import checkpoint
from tests.fakes.training import tiny_training
from tests.hosts import Host, Network, cluster_of_hosts
from tests.nodes import drain
from tests.processes import run, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.certificates import Authority
    from tests.processes import Program
    from tests.servers import S3Server

NUM_SHARDS, SAMPLES_PER_SHARD = 400, 60
CHECKPOINT_EVERY = 1_024
# A worker whose raylet is gone may train on for a moment, which must not be all that is left to train.
TRAINING = tiny_training(
    {
        "images": 16 * CHECKPOINT_EVERY,
        "precision": "float32",
        "report_every_images": 512,
        "checkpoint_every_images": CHECKPOINT_EVERY,
        "callbacks": [],
    },
    evaluation={"num_samples": 0},
    resources={"workers": [1, 2], "collective_timeout_seconds": 20},
)
# Takes a minute and a half for the shards of a job: long enough for a host to join, or to be missed.
SLOW_LINK = "2mbit"
STALLED_LINK = "16kbit"  # no put is done within seconds
# Processes of a node by how their titles begin.
RAYLET = str(Path(ray.__file__).parent / "core/src/ray/raylet/raylet")
ACTOR = "ray::ShardActor"
WAITING_SECONDS = 90  # a put waits for a reply for 60
# The server colours what it refused.
_PUT = re.compile(r'(10\.77\.0\.\d+) .*"(?:\x1b\[\d+m)*PUT (/\S+) HTTP/1\.1(?:\x1b\[0m)?" (\d+)')
_DRAIN = drain('node["NodeManagerAddress"] == sys.argv[2]', seconds=3)
_VERIFY = """
import sys
from genworker.reading import verify
from genworker.stores import open_store
faults = verify(sys.argv[1])
assert not faults, faults
print(open_store(sys.argv[1]).get("_manifest.json").decode())
"""
_STARTS = """
import sys
from genworker.stores import open_store
store = open_store(sys.argv[1])
assert store.head("bundle/bundle.json")
print(store.get("environment.jsonl").decode(), end="")
"""


@dataclass(frozen=True)
class Outcome:
    """How a scenario ended: with the first command, or with the same command again; and how long the first one ran.

    ``refused`` counts the puts of a host that came back too late, whose keys were taken.
    """

    published: bool
    seconds: float
    refused: int = 0


@dataclass
class Site:
    """A running cluster: head, object store, and the hosts that scenarios ask for."""

    network: Network
    hosts: dict[str, Host]
    server: S3Server
    folder: Path
    bundle: str
    second: Host | None = None  # beside `one`, and alive
    manifest: str | None = None  # of a dataset of which every shard was remade

    def join(self, name: str) -> Host:
        """A second host with one processor, whose node joins the cluster."""
        host = self.hosts[name] = self.network.host(f"{name}{len(self.hosts)}")
        self.network.join(host, self.server, num_cpus=1)
        self.second = host
        return host

    def lose(self, only: str = "") -> int:
        """SIGKILL of every process of the second host, or of those whose title begins with ``only``; how many they were."""
        host, self.second = self.second, None
        return 0 if host is None else host.signal(signal.SIGKILL, only)

    def run(self, *words: str) -> Program:
        """Run a command on the head to its end; it must succeed."""
        done = run(self.hosts["head"].command(words), self.folder, self.network.environment(self.server))
        assert done.process.returncode == 0, done.stdout + done.stderr
        return done

    def new_url(self) -> str:
        """A place of its own in the bucket."""
        return f"s3://bucket/{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def driver(self, *words: str) -> Iterator[Program]:
        """A command that goes on, on the head."""
        environment = self.network.environment(self.server)
        with running(self.hosts["head"].command(words), self.folder, environment) as program:
            yield program

    def generation(self, url: str) -> list[str]:
        """The command of a job."""
        words = ["genworker", "generate", self.bundle, "--out", url, "--seed=5", "--no-calibrate"]
        return [*words, f"--num-samples={NUM_SHARDS * SAMPLES_PER_SHARD}", f"--samples-per-shard={SAMPLES_PER_SHARD}"]

    def training(self, url: str) -> list[str]:
        """The command of a training run on two hosts, or on what there is."""
        spec = self.folder / "training.yaml"
        spec.write_text(yaml.safe_dump(TRAINING), encoding="utf-8")
        return ["genworker", "train", str(spec), "--out", url]

    def puts(self, url: str, host: Host | None = None, below: str = "data/") -> list[tuple[str, str]]:
        """Key and status of each object that was sent below a URL, by one host or by any, from the server's log."""
        text = self.server.log.read_text(encoding="utf-8", errors="replace")
        place = f"/{url.removeprefix('s3://')}/{below}"
        return [
            (key, status)
            for address, key, status in (match.groups() for match in _PUT.finditer(text))
            if key.startswith(place) and (host is None or host.address == address)
        ]

    def end(self, program: Program, words: list[str]) -> Outcome:
        """Wait for a job; one that did not end well is resumed by the same command."""
        published = program.wait() == 0
        seconds = time.monotonic() - program.started
        if not published:
            assert "Traceback" not in program.stderr
            self.run(*words)
        return Outcome(published, seconds)

    def starts(self, url: str) -> list[tuple[int, int]]:
        """Workers and images seen at each start of a training run, which has left a bundle."""
        lines = [json.loads(line) for line in self.run("python", "-c", _STARTS, url).stdout.splitlines()]
        return [(line["world_size"], line["images_seen"]) for line in lines]

    def check(self, url: str) -> None:
        """The dataset is published, whole, and equal to what its plan makes, byte for byte; nothing was lost or added.

        Every shard of a site's first dataset is remade; the others have one plan with it, and therefore the same manifest.
        """
        if self.manifest is None:
            done = self.run("genworker", "verify", url, f"--resample={NUM_SHARDS}")
            assert f"{NUM_SHARDS} of them remade with equal bytes" in done.stdout
        manifest = self.run("python", "-c", _VERIFY, url).stdout
        assert manifest == (self.manifest or manifest)
        self.manifest = manifest
        stored = [key for key, status in self.puts(url) if status == "200"]
        assert len(stored) == len(set(stored)) == NUM_SHARDS


@contextlib.contextmanager
def site_in(folder: Path, bundle: str, authority: Authority | None = None) -> Iterator[Site]:
    """A head, an object store with a bucket, and the worker host `one`; with TLS where there is an authority."""
    with cluster_of_hosts(folder, ["one"], authority=authority) as (network, hosts, server):
        site = Site(network, hosts, server, folder, bundle)
        site.run("python", "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')")
        yield site


def undisturbed(site: Site) -> Outcome:
    """Both hosts work to the end."""
    site.second or site.join("second")
    url = site.new_url()
    words = site.generation(url)
    with site.driver(*words) as program:
        outcome = site.end(program, words)
    site.check(url)
    return outcome


def _disturbed(site: Site, name: str, disturb: Callable[[Site, Host, Program, str], int]) -> Outcome:
    """A job of two hosts, the second of which is disturbed once it has made shards.

    ``disturb`` gets the job and its URL, and returns how many late puts of the host were refused.
    """
    host, url = site.second or site.join(name), site.new_url()
    words = site.generation(url)
    try:
        with site.driver(*words) as program:
            program.wait_until(lambda: len(site.puts(url, host)) >= 3)
            refused = disturb(site, host, program, url)
            outcome = site.end(program, words)
    finally:
        site.lose()  # also where it went wrong: the next scenario wants a host that works
    site.check(url)
    return replace(outcome, refused=refused)


def killed(site: Site) -> Outcome:
    """SIGKILL of every process of a host in mid-job: the other one makes the rest."""

    def disturb(site: Site, *_: object) -> int:
        assert site.lose() > 1
        return 0

    return _disturbed(site, "killed", disturb)


def raylet_killed(site: Site) -> Outcome:
    """SIGKILL of a host's raylet alone, the process that ties it to the cluster: its actors outlive it for a moment."""

    def disturb(site: Site, *_: object) -> int:
        assert site.lose(only=RAYLET) == 1
        return 0

    return _disturbed(site, "raylet", disturb)


def cut_off(site: Site) -> Outcome:
    """A host loses its network and freezes, its tasks are given away; then it is back and wakes up.

    Its actors wake before the rest of Ray does, which would end them, so that what they still have to put is put: it is
    refused, because the key is taken.
    """

    def disturb(site: Site, host: Host, program: Program, url: str) -> int:
        # The other host cannot do the whole rest before this one is missed, however fast it is.
        with site.hosts["one"].slow(SLOW_LINK):
            # It holds puts that are not whole when it is cut off; between two tasks it would have nothing left to put.
            with host.slow(STALLED_LINK):
                time.sleep(1.5)
                host.cut()
            time.sleep(2.5)  # it goes on until a put hangs, and is not missed yet
            host.signal(signal.SIGSTOP)
            # Given away when it is missed, or by then on suspicion: they are the next to be done.
            before, there = len(site.puts(url, host)), lambda: len(site.puts(url))
            _wait(lambda: "died" in program.stderr, "the host was not missed")
            given = there()
            _wait(lambda: there() >= given + 4, "its tasks were not given away")
            host.mend()
            assert host.signal(signal.SIGCONT, only=ACTOR) == 1
            _wait(lambda: len(site.puts(url, host)) > before, "the host that came back put nothing")
        host.signal(signal.SIGCONT)
        time.sleep(5)
        late = site.puts(url, host)[before:]
        assert {status for _, status in late} == {"412"}
        return len(late)

    return _disturbed(site, "zombie", disturb)


def announced(site: Site) -> Outcome:
    """Ray's notice of a preemption, with three seconds to go: what the host cannot finish is made by the other."""

    def disturb(site: Site, host: Host, *_: object) -> int:
        site.run("python", "-c", _DRAIN, site.network.environment(site.server)["RAY_ADDRESS"], host.address)
        return 0

    return _disturbed(site, "spot", disturb)


def late(site: Site) -> Outcome:
    """A job begins on one host with a slow link; another host joins while it runs, and gets its share.

    The second host stays.
    """
    site.lose()
    url = site.new_url()
    words = site.generation(url)
    with site.hosts["one"].slow(SLOW_LINK), site.driver(*words) as program:
        program.wait_until(lambda: len(site.puts(url)) >= 3)
        host = site.join("late")
        program.wait_until(lambda: len(site.puts(url, host)) >= 3)
        outcome = site.end(program, words)
    site.check(url)
    return outcome


def not_late(site: Site) -> Outcome:
    """What `late` is compared with: the second host is there from the start."""
    with site.hosts["one"].slow(SLOW_LINK):
        return undisturbed(site)


def trained(site: Site) -> Outcome:
    """Two workers on two hosts train to the end."""
    site.second or site.join("trainer")
    url = site.new_url()
    words = site.training(url)
    with site.driver(*words) as program:
        outcome = site.end(program, words)
    assert site.starts(url) == [(2, 0)]
    return outcome


def training_killed(site: Site, only: str = "") -> Outcome:
    """Two workers on two hosts, one of which is killed: the run goes on from its newest checkpoint and leaves a bundle."""
    site.second or site.join("trainer")
    url = site.new_url()
    words = site.training(url)
    with site.driver(*words) as program:
        program.wait_until(lambda: bool(site.puts(url, below="checkpoints/")))
        assert site.lose(only) >= 1
        stored = {_images(key) for key, status in site.puts(url, below="checkpoints/") if status == "200"}
        outcome = site.end(program, words)
    newest = max(stored)
    assert newest < TRAINING["training"]["images"]
    first, again = site.starts(url)
    assert (first, again[0]) == ((2, 0), 1)
    # What was trained after this checkpoint is all that was lost, and each interval had one: a run trains on while its
    # checkpoint is sent, and no further than to the next.
    assert again[1] >= newest
    assert stored == set(range(CHECKPOINT_EVERY, newest + 1, CHECKPOINT_EVERY))
    return outcome


def training_raylet_killed(site: Site) -> Outcome:
    """The same, where the host's raylet alone is killed."""
    return training_killed(site, only=RAYLET)


def _wait(condition: Callable[[], bool], else_: str) -> None:
    deadline = time.monotonic() + WAITING_SECONDS
    while not condition():
        assert time.monotonic() < deadline, else_
        time.sleep(0.1)


def _images(key: str) -> int:
    return checkpoint.images_of(key[key.index(checkpoint.PREFIX) :])
