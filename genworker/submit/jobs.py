"""The Jobs API of a cluster: a job is submitted once, followed, and found again.

In: a cluster's address and a request. Out: the job's id and its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from genworker.errors import ClusterError, UsageError
from genworker.submit.request import Request
from genworker.yaml_text import read_mapping

_MAX_TRIES = 1_000
_POLL_SECONDS = 1.0
_YOUNG_SECONDS = 60.0


def read_environment(path: Path) -> dict[str, Any]:
    """A runtime environment of Ray in a YAML or JSON file: pip, image_uri, excludes, env_vars, ...

    Raises:
        UsageError: the file is none, or Ray refuses a key or value.
    """
    values = read_mapping(path, "--runtime-env")
    if unknown := values.keys() - RuntimeEnv.known_fields:
        known = ", ".join(sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_")))
        raise UsageError(f"--runtime-env {path}: unknown key {min(map(str, unknown))!r}; known keys: {known}")
    try:
        RuntimeEnv(**values)
    except (TypeError, ValueError) as err:
        raise UsageError(f"--runtime-env {path}: {err}") from err
    return values


class _Output:
    """Writes a text once, of which every connection sends all from the beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = self._seen = 0

    def restart(self) -> None:
        """What comes next is the text's beginning."""
        self._seen = 0

    def take(self, piece: str) -> None:
        """Write what of the next piece was not written before."""
        fresh = piece[max(0, self._shown - self._seen) :]
        self._seen += len(piece)
        if fresh:
            self._write(fresh)
            self._shown = self._seen


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
        output = _Output(write)
        with self._edge():
            while True:
                with contextlib.suppress(RuntimeError, aiohttp.ClientError):  # the connection was lost, not the job
                    asyncio.run(self._tail(job_id, output))
                info = self._client.get_job_info(job_id)
                if info.status.is_terminal():
                    break
                time.sleep(_POLL_SECONDS)
            logs = self._client.get_job_logs(job_id)
        output.restart()
        output.take(logs)
        if info.status is JobStatus.SUCCEEDED:
            return 0
        if "No module named genworker" in logs or "No module named 'genworker'" in logs:
            write("the cluster has no genworker: use an image that has it, or send it along with --working-dir\n")
        if not logs.strip() and info.message:
            write(f"{info.message}\n")
        return info.driver_exit_code or 1

    async def _tail(self, job_id: str, output: _Output) -> None:
        output.restart()
        async for text in self._client.tail_job_logs(job_id):
            output.take(text)

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
        except (ConnectionError, requests.exceptions.RequestException) as err:
            # Ray's client says only that it could not connect; the reason lies in what it was raised from.
            for cause in (err, err.__context__):
                if isinstance(cause, requests.exceptions.SSLError):
                    raise ClusterError(
                        f"{self._address}: its certificate is not trusted: {cause}; name its authority with --ca-file"
                    ) from err
            raise ClusterError(
                f"{self._address}: nobody answers: {err}; check address and port (8265 is the dashboard's), and that the "
                "cluster runs with its dashboard"
            ) from err
        except RuntimeError as err:
            raise ClusterError(f"{self._address}: {err}") from err
