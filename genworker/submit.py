"""Commands of genworker as jobs of a Ray cluster: submitted once, followed, and found again.

In: a cluster's address and a command with its arguments. Out: the job's exit code. A job's id follows from what it does and
from a run id, so a second submit of the same finds the first: it is followed, or said to be done. A job that failed is
submitted anew under the next id; what it left is gone on from, because every command of genworker resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from genworker.bulk.schedule import check_run_id
from genworker.config import preset_names, preset_path, read_mapping
from genworker.errors import ClusterError, UsageError

COMMANDS = ("train", "generate", "evaluate")
# Keys by which a spec is known.
_KEYS = {"generate": {"bundle", "out", "num_samples"}, "train": {"data", "family"}}
_PROGRAM = ("python", "-m", "genworker.cli")
_MAX_TRIES = 1_000
_POLL_SECONDS = 1.0
_YOUNG_SECONDS = 60.0
_SECRET_WORDS = ("SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "ACCESS_KEY", "API_KEY")


def call_of(what: str, arguments: Sequence[str], run_id: str = "") -> tuple[str, list[str]]:
    """The command and arguments that ``what`` stands for: a command itself, or the spec of a job, a file or a shipped one.

    The spec of a dataset is given ``run_id`` for its templates, and as its date where it is one.

    Raises:
        UsageError: it is neither, or a file that is no spec.
    """
    if what in COMMANDS:
        return what, list(arguments)
    command = _kind(what)
    if command == "train":
        return command, [what, *arguments]
    words = ["--spec", what]
    if run_id:
        words += ["--run-id", run_id]
        with contextlib.suppress(ValueError):
            words += ["--date", f"{datetime.date.fromisoformat(run_id)}"]
    return command, [*words, *arguments]


def _kind(what: str) -> str:
    """Which command a spec is for."""
    path = Path(what)
    if path.is_file():
        keys = read_mapping(path).keys()
        for command, known in _KEYS.items():
            if keys & known:
                return command
        raise UsageError(f"spec {what}: is none of a dataset (bundle, out) and none of a training run (data, family)")
    for command, folder in (("train", ""), ("generate", "generate")):
        if preset_path(what, folder) is not None:
            return command
    raise UsageError(
        f"{what!r}: cannot be submitted; choose one of {', '.join(COMMANDS)}, a spec's file, or a shipped spec: "
        f"{', '.join([*preset_names(), *preset_names('generate')])}"
    )


@dataclass(frozen=True)
class Request:
    """What is to run.

    Attributes:
        command: of the command line: train, generate or evaluate.
        arguments: of that command.
        run_id: told apart from other runs of the same command, for example a date; may be empty.
        working_dir: a folder to send along, whose ``genworker`` is used where it holds one; None uses the cluster's own.
        variables: of the job's environment. They can be read by whoever sees the cluster's dashboard.
        num_cpus: that the driver itself takes; 0 runs it on the head.
    """

    command: str
    arguments: Sequence[str]
    run_id: str = ""
    working_dir: Path | None = None
    variables: Mapping[str, str] | None = None
    num_cpus: float = 0.0

    @property
    def submission_id(self) -> str:
        """``genworker-<command>-<digest>[-<run id>]``: the digest is of arguments and the content of files among them."""
        content = [self.command, *self.arguments]
        content += [Path(path).read_text(encoding="utf-8") for path in self._files()]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        return "-".join(filter(None, ["genworker", self.command, digest, self.run_id]))

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong before anything is sent."""
        if self.run_id:
            check_run_id(self.run_id)
        for name in self.variables or {}:
            if any(word in name.upper() for word in _SECRET_WORDS):
                raise UsageError(
                    f"--env {name}: a job's environment is shown to whoever sees the cluster's dashboard; give the nodes "
                    "a role (instance profile, service account), or set the variable when the cluster is started"
                )
        for path in self._files():
            if self.working_dir is not None and not Path(path).resolve().is_relative_to(self.working_dir.resolve()):
                raise UsageError(
                    f"{path}: lies outside --working-dir {self.working_dir}, so the cluster would not get it"
                )

    def _files(self) -> list[str]:
        """Arguments that are files here: specs."""
        return [text for text in self.arguments if text.endswith((".yaml", ".yml")) and Path(text).is_file()]

    @contextlib.contextmanager
    def packed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The job's entry point and runtime environment, valid inside the block."""
        arguments = list(self.arguments)
        with contextlib.ExitStack() as stack:
            folder = self.working_dir
            for path in self._files():
                if self.working_dir is not None:
                    sent = str(Path(path).resolve().relative_to(self.working_dir.resolve()))
                else:
                    folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    sent = f"{len(list(folder.iterdir()))}-{Path(path).name}"
                    shutil.copyfile(path, folder / sent)
                arguments[arguments.index(path)] = sent
            environment: dict[str, Any] = {"env_vars": dict(self.variables or {})}
            if folder is not None:
                environment["working_dir"] = str(folder)
            yield shlex.join([*_PROGRAM, self.command, *arguments]), environment


class Cluster:
    """The Jobs API of a cluster.

    Raises (all methods):
        ClusterError: nobody answers there, the token is wrong or missing, or the cluster runs another version of Ray.
    """

    def __init__(self, address: str, ca_file: Path | None = None) -> None:
        """Connect to ``address`` (http or https); ``ca_file`` holds the certificate authority of an https address."""
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"--address {address!r}: write it as http://HOST:8265, the address of the cluster's dashboard"
            )
        self._address = address
        with self._edge():
            self._client = JobSubmissionClient(address, verify=True if ca_file is None else str(ca_file))
            there = self._client._do_request("GET", "/api/version").json()["ray_version"]
        if there != ray.__version__:
            raise ClusterError(
                f"{address}: runs Ray {there}, this is {ray.__version__}; its jobs need one version on both sides: "
                f"pip install 'ray[default]=={there}' here, or use the cluster's image"
            )

    def submit(self, request: Request) -> tuple[str, JobStatus | None]:
        """Submit a job unless it is there; returns its id and, where it was there already, how it is doing."""
        with self._edge():
            for number in range(_MAX_TRIES):
                job_id = request.submission_id + (f"-retry{number}" if number else "")
                status = self._status(job_id)
                if status is None:
                    if self._send(request, job_id):
                        return job_id, None
                    status = self._client.get_job_status(job_id)  # another submit was quicker
                if status not in {JobStatus.FAILED, JobStatus.STOPPED}:
                    return job_id, status
        raise ClusterError(f"{request.submission_id}: failed {_MAX_TRIES} times; find out why before it is tried again")

    def follow(self, job_id: str, write: Callable[[str], None]) -> int:
        """Hand on what a job prints until it ends; returns its exit code, 0 for success."""
        shown = 0
        with self._edge():
            while True:
                with contextlib.suppress(RuntimeError, aiohttp.ClientError):  # the connection was lost, not the job
                    shown = asyncio.run(self._tail(job_id, shown, write))
                info = self._client.get_job_info(job_id)
                if info.status.is_terminal():
                    break
                time.sleep(_POLL_SECONDS)
            logs = self._client.get_job_logs(job_id)
        if len(logs) > shown:
            write(logs[shown:])
        if info.status is JobStatus.SUCCEEDED:
            return 0
        if "No module named genworker" in logs or "No module named 'genworker'" in logs:
            write("the cluster has no genworker: use an image that has it, or send it along with --working-dir\n")
        if not logs.strip() and info.message:
            write(f"{info.message}\n")
        return info.driver_exit_code or 1

    async def _tail(self, job_id: str, shown: int, write: Callable[[str], None]) -> int:
        seen = 0
        async for text in self._client.tail_job_logs(job_id):
            fresh = text[max(0, shown - seen) :]
            seen += len(text)
            if fresh:
                write(fresh)
                shown = max(shown, seen)
        return shown

    def _status(self, job_id: str) -> JobStatus | None:
        try:
            return self._client.get_job_status(job_id)
        except RuntimeError as err:
            if "404" in str(err):
                return None
            raise

    def _send(self, request: Request, job_id: str) -> bool:
        deadline = time.monotonic() + _YOUNG_SECONDS
        with request.packed() as (entrypoint, environment):
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        runtime_env=environment,
                        entrypoint_num_cpus=request.num_cpus,
                        metadata={"genworker_run_id": request.run_id},
                    )
                except RuntimeError as err:
                    if "already exists" in str(err):
                        return False
                    # The dashboard of a head that has just started answers before its agent does.
                    if "No available agent" not in str(err) or time.monotonic() >= deadline:
                        raise
                    time.sleep(_POLL_SECONDS)
                else:
                    return True

    @contextlib.contextmanager
    def _edge(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as err:
            raise ClusterError(
                f"{self._address}: refuses the token: {str(err).splitlines()[0]}; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
            ) from err
        except requests.exceptions.SSLError as err:
            raise ClusterError(
                f"{self._address}: its certificate is not trusted: {err}; name its authority with --ca-file"
            ) from err
        except (ConnectionError, requests.exceptions.RequestException) as err:
            raise ClusterError(
                f"{self._address}: nobody answers: {err}; check address and port (8265 is the dashboard's), and that the "
                "cluster runs with its dashboard"
            ) from err
        except RuntimeError as err:
            raise ClusterError(f"{self._address}: {err}") from err
