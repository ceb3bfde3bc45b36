"""Several hosts on one machine: network namespaces on a bridge, with a Ray node or an object store in each.

Every host has its own interface and address on 10.77.0.0/24 and its own loopback; files and processes are shared, as on one
machine. A link can be taken down and up again, and all of a host's processes can be frozen, which together are what a
network partition of a paused machine is. Making namespaces needs root; `available` says whether it works here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.processes import running
from tests.servers import S3Server, moto_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.certificates import Authority
    from tests.processes import Program

S3_PORT = 5000
# A node that is gone is noticed within seconds, not half a minute.
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_agent_register_timeout_ms": "120000",
}
START_SECONDS = 60.0
# Where a port is given, a node does not end when its agents take more than fifteen seconds to say theirs on a busy machine.
AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
PORTS = [f"--{name}-port={9001 + number}" for number, name in enumerate(AGENTS)]


def ip(*words: str) -> None:
    """Run `ip` with these words, or raise CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@functools.cache
def available() -> bool:
    """Whether network namespaces can be made here."""
    name = f"gw{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@dataclass
class Host:
    """One namespace on the bridge."""

    name: str
    space: str
    address: str
    port: str  # the bridge's end of its cable
    network: Network = field(repr=False)
    node: Program | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """``words``, to be run on this host; scripts are those of this Python's environment."""
        script = Path(sys.executable).parent / words[0]
        return ["ip", "netns", "exec", self.space, str(script) if script.exists() else words[0], *words[1:]]

    def cut(self) -> None:
        """Take its cable out of the switch."""
        ip("-n", self.network.switch, "link", "set", self.port, "down")

    def mend(self) -> None:
        """Put its cable back."""
        ip("-n", self.network.switch, "link", "set", self.port, "up")

    @contextlib.contextmanager
    def slow(self, rate: str) -> Iterator[None]:
        """Let it send no more than ``rate``, as `tc` writes it (8mbit), inside the block."""
        link = ["tc", "-n", self.space, "qdisc"]
        shape = ["tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
        subprocess.run([*link, "add", "dev", "eth0", "root", *shape], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run([*link, "del", "dev", "eth0", "root"], check=True, capture_output=True)

    def signal(self, number: int, only: str = "") -> int:
        """Send a signal to all processes of its Ray node, or to those whose title begins with ``only``; how many got it."""
        assert self.node is not None
        count = 0
        for process in self.node.family():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
                if title.startswith(only):
                    os.kill(process.pid, number)
                    count += 1
        return count


class Network:
    """A switch and the hosts on it; to be used as a context manager, which takes all of it away again."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self._folder, self._authority = folder, authority
        self._mark = secrets.token_hex(2)
        self.switch = f"gw{self._mark}-sw"
        self.token_path = folder / "token"
        self._stack = contextlib.ExitStack()
        self._count = 0
        # Ray looks for clusters by what runs on the machine, whatever the namespace: one of another network is in the way.
        self._gcs_port = 20_000 + secrets.randbelow(10_000)

    def __enter__(self) -> Network:
        self.token_path.touch(mode=0o600)
        self.token_path.write_text(secrets.token_hex(32), encoding="utf-8")
        self._add_space(self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """Add a host."""
        self._count += 1
        space, port = f"gw{self._mark}-{name}", f"p{self._count}"
        address = f"10.77.0.{self._count}"
        self._add_space(space)
        ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        return Host(name, space, address, port, self)

    def object_store(self, host: Host) -> S3Server:
        """Start an S3 server that honours create-only puts; its log is ``moto.log`` in the folder."""
        path = self._folder / "moto.log"
        command = host.command(moto_command(S3_PORT, "--host", host.address, "--keep-alive"))
        with path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        endpoint = f"http://{host.address}:{S3_PORT}"
        server = S3Server("moto", endpoint, "test", secrets.token_hex(8), process, path, {})
        probe = host.command(
            [sys.executable, "-c", f"import socket; socket.create_connection(('{host.address}', {S3_PORT}))"]
        )
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self._folder / "moto.log").read_text()
            time.sleep(0.2)
        return server

    def environment(self, server: S3Server, address: str = "10.77.0.1") -> dict[str, str]:
        """What a program on the host of an address needs to find the cluster and the object store."""
        head = f"10.77.0.1:{self._gcs_port}"
        tls = self._authority.certify(address) if self._authority else {}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        return server.environment | token | tls | HEALTH | {"RAY_ADDRESS": head}

    def head(self, host: Host, server: S3Server, num_cpus: int = 0) -> None:
        """Start the cluster's head on ``host``, the first host of the network."""
        assert host.address == "10.77.0.1"
        words = ["--head", f"--port={self._gcs_port}", "--include-dashboard=false"]
        self._ray(host, words, server, num_cpus)

    def join(self, host: Host, server: S3Server, num_cpus: int) -> None:
        """Start a node on ``host``."""
        self._ray(host, [f"--address=10.77.0.1:{self._gcs_port}"], server, num_cpus)

    def _ray(self, host: Host, words: Sequence[str], server: S3Server, num_cpus: int) -> None:
        command = ["ray", "start", *words, "--block", f"--num-cpus={num_cpus}", f"--node-ip-address={host.address}"]
        command += [*PORTS, "--object-store-memory=100000000", "--disable-usage-stats", "--include-log-monitor=false"]
        variables = {
            name: value for name, value in self.environment(server, host.address).items() if name != "RAY_ADDRESS"
        }
        node = self._stack.enter_context(running(host.command(command), self._folder, variables))
        node.wait_until(lambda: "Ray runtime started" in node.stdout)
        host.node = node

    def _add_space(self, name: str) -> None:
        ip("netns", "add", name)
        self._stack.callback(_remove_space, name)


def _remove_space(name: str) -> None:
    """End what still runs in a namespace, by process id, and remove it; cables go with it."""
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()
    for pid in inside:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def cluster_of_hosts(
    folder: Path, names: Sequence[str], num_cpus: int = 1, authority: Authority | None = None
) -> Iterator[tuple[Network, dict[str, Host], S3Server]]:
    """A head without processors, an object store and worker hosts of those names, all started."""
    with Network(folder, authority) as network:
        hosts = {"head": network.host("head")}
        hosts["store"] = network.host("store")
        server = network.object_store(hosts["store"])
        network.head(hosts["head"], server)
        for name in names:
            hosts[name] = network.host(name)
            network.join(hosts[name], server, num_cpus)
        yield network, hosts, server
