"""`genworker submit` against a Jobs API that does what real ones do seldom: races, lost connections, other versions, TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from genworker.cli import cli
from genworker.submit import jobs
from genworker.submit.jobs import Cluster
from tests.certificates import Authority
from tests.fakes.jobs_api import JobsApi, serve
from tests.tls import tls_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result


pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's client says it


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)
    with serve() as found:
        yield found


def submit(api: JobsApi, *flags: str, url: str = "") -> Result:
    """Run the command in this process."""
    command = ["submit", "--address", url or api.url, *flags, "train", "fashion-tiny", "--out", "x"]
    return CliRunner().invoke(cli, command, catch_exceptions=False)


def test_a_job_is_followed_to_its_end(api: JobsApi) -> None:
    """What it printed comes out, and its exit code; the same again says that it is done."""
    api.logs = "one\ntwo\n"
    first, second = submit(api), submit(api)
    (name,) = api.jobs
    assert (first.exit_code, first.stdout) == (0, "one\ntwo\n")
    assert (second.exit_code, second.stdout) == (0, "")
    assert f"done:      {name} has succeeded already" in second.stderr
    assert api.jobs[name]["entrypoint"] == "python -m genworker.cli train fashion-tiny --out x"


def test_a_lost_connection_is_made_again(api: JobsApi) -> None:
    """Nothing is shown twice, and nothing is left out, although a new connection begins at the beginning."""
    api.tails, api.logs = ["one\n", "one\ntw", ""], "one\ntwo\nthree\n"
    assert submit(api).stdout == "one\ntwo\nthree\n"


def test_detached_it_does_not_wait(api: JobsApi) -> None:
    api.status = "RUNNING"
    for word in ("submitted:", "attached: "):
        done = submit(api, "--detach")
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr.startswith(word)


def test_ctrl_c_leaves_the_job(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how to stop it."""

    def interrupt(*_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "follow", interrupt)
    done = submit(api)
    (name,) = api.jobs
    assert done.exit_code == 130
    assert f"ray job stop --address {api.url} {name}" in done.stderr


def test_of_two_submits_at_once_one_sends(api: JobsApi) -> None:
    """Who comes second attaches, or finds the job done."""
    api.rivals = True
    done = submit(api)
    assert done.exit_code == 0
    assert "has succeeded already" in done.stderr
    assert list(api.jobs.values()) == ["the rival's"]


def test_a_head_that_has_just_started_is_asked_again(api: JobsApi) -> None:
    api.refusals = ["No available agent to submit job, please try again later."] * 2
    assert submit(api).exit_code == 0
    assert len(api.jobs) == 1


def test_what_the_cluster_says_is_passed_on(api: JobsApi) -> None:
    api.refusals = ["entrypoint_num_cpus is not for you"]
    done = submit(api)
    assert done.exit_code == 1
    assert "entrypoint_num_cpus is not for you" in done.stderr
    assert api.jobs == {}


def test_another_version_of_ray_is_said_plainly(api: JobsApi) -> None:
    api.ray_version = "2.9.9"
    done = submit(api)
    assert done.exit_code == 1
    assert f"{api.url}: runs Ray 2.9.9, this is " in done.stderr
    assert "pip install 'ray[default]==2.9.9'" in done.stderr
    assert api.jobs == {}


@pytest.mark.parametrize(
    ("logs", "exit_code", "printed"),
    [
        ("/usr/bin/python: No module named genworker\n", 1, "the cluster has no genworker: use an image that has it"),
        ("", 0, "the message"),
        ("Error: out of luck\n", 3, "Error: out of luck"),
    ],
)
def test_a_job_that_fails(api: JobsApi, logs: str, exit_code: int, printed: str) -> None:
    """Its exit code, or 1 where it never had one; what it said, or what the cluster says of it."""
    api.status, api.logs, api.exit_code = "FAILED", logs, exit_code
    done = submit(api)
    assert done.exit_code == (exit_code or 1)
    assert printed in done.stdout


def test_a_certificate_of_an_unknown_authority(api: JobsApi, tmp_path: Path) -> None:
    """The flag is named, and with it all goes well, the WebSocket that follows the job included."""
    certificate = Authority(tmp_path / "authority").certify("127.0.0.1")
    api.tails, api.logs = ["one\n"], "one\ntwo\n"
    with tls_proxy(api.url, certificate) as url:
        refused = submit(api, url=url)
        assert (refused.exit_code, api.jobs) == (1, {})
        assert f"{url}: its certificate is not trusted" in refused.stderr
        assert "--ca-file" in refused.stderr
        done = submit(api, "--ca-file", certificate["RAY_TLS_CA_CERT"], url=url)
    assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
    assert api.tails == []
