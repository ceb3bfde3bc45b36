"""What rounds of chaos stand on: servers, a bundle, a plan, what an undisturbed run gives, and jobs in processes of their own.

In: a folder. Out: places to write to, jobs to disturb, and the judgement of what they left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genworker.bulk.layout import Layout
from genworker.bulk.plan import DATA_PREFIX, MANIFEST_KEY, SUCCESS_KEY, Plan
from tests.chaos import jobs
from tests.chaos.forked import Forked
from tests.chaos.plans import plan_for
from tests.fakes.bundle import save_bundle
from tests.proxies import FaultProxy
from tests.servers import S3Server, moto_server, rclone_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FINISH_SECONDS = 120.0


@dataclass(frozen=True)
class Place:
    """Where a dataset is written: a folder, or a prefix in a bucket of ``server``."""

    url: str
    server: S3Server | None = None

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables of a job that writes there, by way of ``endpoint`` if that is given."""
        if self.server is None:
            return {}
        variables = self.server.environment | {"AWS_MAX_ATTEMPTS": "4"}
        return variables | ({"AWS_ENDPOINT_URL_S3": endpoint} if endpoint else {})

    def contents(self) -> dict[str, bytes]:
        """All objects, read behind the back of the code under test."""
        if self.server is None:
            root = Path(self.url)
            return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        found = {}
        for page in self.server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for item in page.get("Contents", ()):
                body = self.server.client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                found[item["Key"].removeprefix(f"{prefix}/")] = body
        return found


@dataclass(frozen=True)
class Judgement:
    """What a place holds compared with the undisturbed run: whether it is published, keys lost or wrong, keys too many."""

    published: bool
    lost: tuple[str, ...]
    extra: tuple[str, ...]


class Job:
    """A job in a process of its own."""

    def __init__(self, ground: Ground, place: Place, endpoint: str | None = None) -> None:
        self._report = ground.folder / f"ending-{secrets.token_hex(8)}.json"
        environment = place.environment(endpoint)
        self._process = Forked(
            jobs.run, place.url, ground.bundle, ground.plan.canonical(), environment, str(self._report)
        )

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.exit_code is not None

    def send(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        self._process.send(number)

    def wait(self) -> jobs.Ending | None:
        """Wait for the end; None if the job was killed before it could tell."""
        exit_code = self._process.wait(FINISH_SECONDS)
        if exit_code is None:
            self.send(signal.SIGKILL)
            self._process.wait()
            raise AssertionError(f"a job still ran after {FINISH_SECONDS:.0f} s")
        if not self._report.exists():
            assert exit_code == -signal.SIGKILL, f"a job ended with {exit_code}"
            return None
        ending = jobs.Ending(**json.loads(self._report.read_text(encoding="utf-8")))
        assert ending.is_ours, ending.message
        return ending


@dataclass
class Ground:
    """What all rounds share."""

    folder: Path
    moto: S3Server
    rclone: S3Server
    bundle: str
    plan: Plan
    restarting: S3Server  # an rclone that one round at a time may restart
    alone: threading.Lock = field(default_factory=threading.Lock)
    reference: dict[str, str] = field(default_factory=dict)
    num_requests: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def new_place(self, kind: str) -> Place:
        """An empty place: ``folder``, or the name of a server."""
        name = f"round-{secrets.token_hex(6)}"
        if kind == "folder":
            return Place(str(self.folder / name))
        server: S3Server = getattr(self, kind)
        return Place(f"s3://{_bucket_of(server)}/{name}", server)

    def judge(self, place: Place) -> Judgement:
        """Compare a place with the undisturbed run."""
        seen = visible(place.contents())
        lost = tuple(key for key, digest in self.reference.items() if seen.get(key) != digest)
        extra = tuple(key for key in seen if key not in self.reference)
        return Judgement(SUCCESS_KEY in seen, lost, extra)


def visible(contents: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 by key of all that readers may see."""
    return {
        key: hashlib.sha256(data).hexdigest()
        for key, data in contents.items()
        if key.startswith(DATA_PREFIX) or key in {MANIFEST_KEY, SUCCESS_KEY} or "/" not in key
    }


@contextlib.contextmanager
def ground_in(
    folder: Path, moto: S3Server | None = None, rclone: S3Server | None = None, format: str = "parquet"
) -> Iterator[Ground]:
    """Set everything up: servers where none are given, the bundle, the plan, and one undisturbed run."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        moto = moto or stack.enter_context(moto_server(folder / "moto"))
        rclone = rclone or stack.enter_context(rclone_server(folder / "rclone"))
        restarting = stack.enter_context(rclone_server(folder / "restarting"))
        bundle = save_bundle(str(folder / "bundle"))
        ground = Ground(folder, moto, rclone, bundle, plan_for(bundle, format=format), restarting)
        place = ground.new_place("folder")
        for _ in range(2):  # the first pays for what is loaded once
            place = ground.new_place("folder")
            began = time.monotonic()
            ending = Job(ground, place).wait()
            ground.seconds = time.monotonic() - began
            assert ending == jobs.Ending(), ending
        contents = place.contents()
        ground.reference = visible(contents)
        ground.num_bytes = sum(len(data) for data in contents.values())
        num_objects = sum(Layout(ground.plan).num_objects(task) for task in ground.plan.tasks())
        assert len(ground.reference) == num_objects + 2
        place = ground.new_place("moto")
        with FaultProxy(moto.endpoint, lambda _request: None) as proxy:
            ending = Job(ground, place, proxy.url).wait()
        assert ending == jobs.Ending(), ending
        assert ground.judge(place) == Judgement(True, (), ())
        ground.num_requests = proxy.num_requests
        yield ground


def _bucket_of(server: S3Server) -> str:
    bucket = "chaos"
    with contextlib.suppress(
        server.client.exceptions.BucketAlreadyOwnedByYou, server.client.exceptions.BucketAlreadyExists
    ):
        server.client.create_bucket(Bucket=bucket)
    return bucket
