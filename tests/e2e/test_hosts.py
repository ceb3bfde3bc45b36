"""Generation on several hosts with networks of their own, which are killed, cut off, paused, or announced to go.

Every dataset is checked whole, and every shard of it is remade and compared byte by byte. Needs root, for network namespaces.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.hosts import Host, Network, available, cluster_of_hosts
from tests.processes import run, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.processes import Program
    from tests.servers import S3Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not available(), reason="network namespaces cannot be made here; run as root to test several hosts"
    ),
]

NUM_SHARDS, SAMPLES_PER_SHARD = 300, 150
PUT = re.compile(r'(10\.77\.0\.\d+) .*"PUT (/\S+/data/\S+) HTTP/1\.1" (\d+)')


@dataclass
class Site:
    """A running cluster: head, object store, and the hosts that a test asks for."""

    network: Network
    hosts: dict[str, Host]
    server: S3Server
    folder: Path
    bundle: str

    def join(self, name: str) -> Host:
        """A new host with one processor, whose node joins the cluster."""
        host = self.hosts[name] = self.network.host(name)
        self.network.join(host, self.server, num_cpus=1)
        return host

    def run(self, *words: str) -> Program:
        """Run a command on the head to its end; it must succeed."""
        done = run(self.hosts["head"].command(words), self.folder, self.network.environment(self.server))
        assert done.process.returncode == 0, done.stdout + done.stderr
        return done

    def new_url(self) -> str:
        """A place of its own in the bucket."""
        return f"s3://bucket/{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def generating(self, url: str) -> Iterator[Program]:
        """The driver of a job, on the head."""
        words = ["genworker", "generate", self.bundle, "--out", url, "--seed=5"]
        words += [f"--num-samples={NUM_SHARDS * SAMPLES_PER_SHARD}", f"--samples-per-shard={SAMPLES_PER_SHARD}"]
        environment = self.network.environment(self.server)
        with running(self.hosts["head"].command(words), self.folder, environment) as program:
            yield program

    def puts(self, url: str, host: Host | None = None) -> list[tuple[str, str]]:
        """Key and status of each shard that was sent below a URL, by one host or by any, from the server's log."""
        text = self.server.log.read_text(encoding="utf-8", errors="replace")
        found = [match.groups() for match in PUT.finditer(text)]
        place = "/" + url.removeprefix("s3://")
        return [
            (key, status)
            for address, key, status in found
            if key.startswith(place) and (host is None or host.address == address)
        ]

    def check(self, url: str) -> None:
        """The dataset is published, whole, and equal to what its plan makes, byte for byte; nothing was lost or added."""
        done = self.run("genworker", "verify", url, f"--resample={NUM_SHARDS}")
        assert f"{NUM_SHARDS} of them remade with equal bytes" in done.stdout
        stored = [key for key, status in self.puts(url) if status == "200"]
        assert len(stored) == len(set(stored)) == NUM_SHARDS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: str) -> Iterator[Site]:
    """A head, an object store and one worker host."""
    folder = tmp_path_factory.mktemp("hosts")
    with cluster_of_hosts(folder, ["one"]) as (network, hosts, server):
        site = Site(network, hosts, server, folder, tiny_bundle)
        site.run("python", "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')")
        yield site


def test_a_killed_host_loses_nothing(site: Site) -> None:
    """SIGKILL of every process of a host in mid-job: the other one makes the rest."""
    host, url = site.join("killed"), site.new_url()
    with site.generating(url) as program:
        program.wait_until(lambda: len(site.puts(url, host)) >= 3)
        assert host.signal(signal.SIGKILL) > 1
        assert program.wait() == 0, program.stdout + program.stderr
    assert len(site.puts(url, host)) < NUM_SHARDS
    site.check(url)


def test_a_host_that_comes_back_from_the_dead_changes_nothing(site: Site) -> None:
    """A host loses its network and freezes, its tasks are given away, the job ends; then it is back and wakes up.

    What it still sends, if anything, is refused, because the key is taken by equal bytes.
    """
    host, url = site.join("zombie"), site.new_url()
    with site.generating(url) as program:
        program.wait_until(lambda: len(site.puts(url, host)) >= 3)
        host.cut()
        time.sleep(2.5)  # it goes on until a put hangs, and is not missed yet
        host.signal(signal.SIGSTOP)
        assert program.wait() == 0, program.stdout + program.stderr
    before = len(site.puts(url, host))
    host.mend()
    host.signal(signal.SIGCONT)
    time.sleep(5)
    assert {status for _, status in site.puts(url, host)[before:]} <= {"412"}
    site.check(url)


DRAIN = """
import subprocess, sys, ray
ray.init(sys.argv[1], logging_level="ERROR")
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[2]]
command = ["ray", "drain-node", "--address", sys.argv[1], "--node-id", node, "--deadline-remaining-seconds", "3"]
command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
sys.exit(subprocess.run(command).returncode)
"""


def test_a_host_that_is_announced_to_go_loses_nothing(site: Site) -> None:
    """Ray's notice of a preemption, with three seconds to go: what the host cannot finish is made by the other."""
    host, url = site.join("spot"), site.new_url()
    with site.generating(url) as program:
        program.wait_until(lambda: len(site.puts(url, host)) >= 3)
        site.run("python", "-c", DRAIN, site.network.environment(site.server)["RAY_ADDRESS"], host.address)
        assert program.wait() == 0, program.stdout + program.stderr
    site.check(url)
