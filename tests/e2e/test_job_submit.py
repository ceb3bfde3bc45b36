"""README's "On a cluster", followed on a head that wants a token, and what else can happen to jobs that are submitted there."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray
import requests
import yaml
from click.testing import CliRunner

import genworker
from genworker import bundle as bundles
from genworker.bulk import commit, ledger
from genworker.bulk.plan import RECEIPTS_PREFIX
from genworker.bulk.records import ReceiptBatch
from genworker.cli import cli
from genworker.reading import verify
from genworker.stores import open_store
from genworker.submit.request import STOP_WAIT, STOP_WAIT_SECONDS
from genworker.training.record import BUNDLE_PREFIX
from tests import canaries
from tests.certificates import Authority
from tests.chaos.jobs import flags_of, trigger
from tests.datasets import all_samples, published_digests, stored_shards
from tests.fakes.training import tiny_training
from tests.processes import run, running, titled
from tests.readme import shell_lines
from tests.servers import free_port, free_ports
from tests.tls import tls_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.processes import Program
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

PAGE = shell_lines("On a cluster")
REPOSITORY = Path(genworker.__file__).parent.parent
SHIPPED_VERSION = f"{genworker.__version__}+submitted"

TINY_SPEC = tiny_training({"images": 256, "report_every_images": 128, "callbacks": ["tensorboard", "mlflow"]})


@dataclass(frozen=True)
class Head:
    """A running head node: where jobs go and clients join, the variables that let them in, and what only the node itself knows.

    ``canaries`` are secrets in the node's environment besides those of ``s3``; ``folder`` holds all but ``token`` that the node
    was started with and what it printed, ``session`` Ray's own logs.
    """

    address: str
    gcs: str
    environment: dict[str, str]
    token: str
    working_dir: Path
    s3: S3Server
    canaries: dict[str, str]
    folder: Path
    session: Path

    def submit(self, entry: Sequence[str], folder: Path, environment: dict[str, str]) -> Program:
        """Run `ray job submit` to the end of the job."""
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", ".", "--", "python", *entry]
        return run(command, folder, environment, cwd=self.working_dir)


@pytest.fixture(scope="module")
def head(rclone: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node with token authentication, on ports and in a folder of its own; ended by its process ids."""
    folder = tmp_path_factory.mktemp("head")
    *setup, start = [line for line in PAGE if not line.startswith(("genworker", "ray job"))]
    made = run(["bash", "-euc", "\n".join([*setup, 'echo "$RAY_AUTH_MODE"'])], tmp_path_factory.mktemp("token"))
    assert made.process.returncode == 0, made.stderr
    token_path = made.home / ".ray" / "auth_token"
    token = token_path.read_text(encoding="utf-8")
    environment = {"RAY_AUTH_MODE": made.stdout.strip(), "RAY_AUTH_TOKEN_PATH": str(token_path)}
    known = {name: canaries.canary() for name in ("session token", "mlflow token", "lineage key", "wrong secret key")}
    node_environment = {
        **environment,
        **rclone.environment,
        "AWS_SESSION_TOKEN": known["session token"],
        "MLFLOW_TRACKING_TOKEN": known["mlflow token"],
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OPENLINEAGE_API_KEY": known["lineage key"],
    }
    working_dir = folder / "code"
    for name in ("genworker", "jobs"):
        shutil.copytree(REPOSITORY / name, working_dir / name, ignore=shutil.ignore_patterns("__pycache__"))
    # The package is installed here too; what runs must be what was submitted.
    init = working_dir / "genworker" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    init.write_text(text.replace(f'"{genworker.__version__}"', f'"{SHIPPED_VERSION}"'), encoding="utf-8")

    (working_dir / "tiny.yaml").write_text(yaml.safe_dump(TINY_SPEC), encoding="utf-8")
    for attempts_left in reversed(range(3)):
        dashboard, *others = free_ports(6)
        named = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
        options = {
            "dashboard-port": dashboard,
            **dict(zip((*named, "ray-client-server-port"), others, strict=True)),
            # Any free ports, so that another cluster on this machine is not in the way.
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": 4,
            "node-ip-address": "127.0.0.1",
        }
        # Paths of sockets are limited to about a hundred characters.
        with tempfile.TemporaryDirectory(prefix="gw-", ignore_cleanup_errors=True) as temp:
            command = [*shlex.split(start), "--block", f"--temp-dir={temp}"]
            command += [f"--{name}={value}" for name, value in options.items()]
            with running(command, folder, node_environment) as program:
                program.wait_until(lambda port=dashboard: is_open(port))  # type: ignore[misc]
                if not comes_up(others[1]) and attempts_left:  # the agent's
                    continue  # another program took one of its ports before Ray did: the head lives, and takes no jobs
                yield Head(
                    address=f"http://127.0.0.1:{dashboard}",
                    gcs=f"127.0.0.1:{options['port']}",
                    environment=environment,
                    token=token,
                    working_dir=working_dir,
                    s3=rclone,
                    canaries=known | {"cluster's token": token},
                    folder=folder,
                    session=Path(temp),
                )
                return


def comes_up(port: int, within_seconds: float = 60.0) -> bool:
    """Whether the agent, which starts jobs, listens on both of its addresses before so much time is over."""
    deadline, hosts = time.monotonic() + within_seconds, ("127.0.0.1", ray.util.get_node_ip_address())
    while not (there := all(is_open(port, host) for host in hosts)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return there


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def submit(
    head: Head, arguments: Sequence[str], *, working_dir: Path | None, run_id: str = "", address: Sequence[str] = ()
) -> list[str]:
    """The command line of `genworker submit`; ``address`` are the flags that say where to, if not to the head itself."""
    flags = [*(address or ["--address", head.address]), f"--run-id={run_id}"]
    flags += [] if working_dir is None else ["--working-dir", str(working_dir)]
    return ["genworker", "submit", *flags, *arguments]


def supervisors() -> list[str]:
    """The environments of the processes that stop jobs, as they were started."""
    found = []
    for pid in titled("ray::JobSupervisor"):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace"))
    return found


def test_submitting_twice_runs_once(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """A second submit of the same run attaches to the first, both follow it to its end, and a third says that it is done.

    The second talks TLS, to a proxy whose authority it was told.
    """
    out, certificate = tmp_path / "out", Authority(tmp_path / "authority").certify("127.0.0.1")
    job = ["generate", tiny_bundle, "--out", str(out), "--num-samples=600", "--samples-per-shard=100", "--actors=2"]
    command = submit(head, job, working_dir=head.working_dir, run_id="2026-11-25")
    with (
        tls_proxy(head.address, certificate) as url,
        running(command, tmp_path, head.environment) as first,
    ):
        address = ["--address", url, "--ca-file", certificate["RAY_TLS_CA_CERT"]]
        over_tls = submit(head, job, working_dir=head.working_dir, run_id="2026-11-25", address=address)
        first.wait_until(lambda: "submitted: genworker-generate-" in first.stderr)
        first.wait_until(lambda: any(f"{STOP_WAIT}={STOP_WAIT_SECONDS}" in text for text in supervisors()))
        second = run(over_tls, tmp_path, head.environment)
        assert first.wait() == 0, first.stdout + first.stderr
    assert second.process.returncode == 0, second.stdout + second.stderr
    assert "attached: " in second.stderr
    for program in (first, second):
        assert "600 samples in 6 shards" in program.stdout
    third = run(command, tmp_path, head.environment)
    assert (third.process.returncode, third.stdout) == (0, "")
    assert "-2026-11-25 has succeeded already" in third.stderr
    assert verify(str(out)) == []


def test_a_stopped_job_drains_and_is_submitted_anew(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """Ray's job API stops a job in mid-run: each shard that is there has its receipt, and the next submit makes the others."""
    num_shards, values = 120, {"num_samples": 18_000, "samples_per_shard": 150, "seed": 5, "actors": 2}
    out, undisturbed = str(tmp_path / "out"), str(tmp_path / "undisturbed")
    command = submit(head, ["generate", tiny_bundle, "--out", out, *flags_of(values), "--json"], working_dir=None)
    with running(command, tmp_path, head.environment) as first:
        first.wait_until(lambda: Path(out, "data").is_dir() and len(stored_shards(out)) >= 3)
        job_id, began = first.stderr.split()[1], time.monotonic()
        answer = requests.post(
            f"{head.address}/api/jobs/{job_id}/stop", headers={"Authorization": f"Bearer {head.token}"}, timeout=30
        )
        assert answer.json() == {"stopped": True}
        assert first.wait() != 0
    assert time.monotonic() - began < STOP_WAIT_SECONDS
    assert "stopping: no new shards, up to 20 s for" in first.stdout
    assert "Stopped. What was made stays; run the same command again to go on." in first.stdout
    store = open_store(out)
    plan = commit.read_plan(store)
    assert plan is not None
    kept = stored_shards(out)
    assert {plan.shard_key(index) for index in ledger.read(store, plan)} == set(kept)
    assert 3 <= len(kept) < num_shards
    times = {key: Path(out, key).stat().st_mtime_ns for key in kept}

    second = run(command, tmp_path, head.environment)
    assert second.process.returncode == 0, second.stdout + second.stderr
    assert second.stderr.split()[1] == f"{job_id}-retry1"
    summary, _ = json.JSONDecoder().raw_decode(second.stdout[second.stdout.index("\n{\n") + 1 :])
    assert summary["made"]["shards"] == num_shards - len(kept)
    assert {key: Path(out, key).stat().st_mtime_ns for key in kept} == times
    batches = [ReceiptBatch.model_validate_json(store.get(info.key)) for info in store.list(RECEIPTS_PREFIX)]
    receipts = [receipt.shard_index for batch in batches for receipt in batch.receipts]
    assert sorted(receipts) == list(range(num_shards))  # one of each: none was made again
    trigger({**values, "bundle": tiny_bundle, "out": undisturbed}, str(tmp_path / "counted.json"))
    assert published_digests(out) == published_digests(undisturbed)
    print(f"stopped with {len(kept)} of {num_shards} shards, then made {summary['made']['shards']}")  # noqa: T201


def test_a_failed_job_is_submitted_anew(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """The exit code and message of the job come out, and the same submit tries again under the next id."""
    job = ["generate", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"), "--num-samples=600"]
    command = submit(head, job, working_dir=None)  # with the genworker that is installed on the cluster
    first, second = (run(command, tmp_path, head.environment) for _ in range(2))
    for program in (first, second):
        assert program.process.returncode == 1
        assert "there is no bundle" in program.stdout
        assert "Traceback" not in program.stdout + program.stderr
    assert first.stderr.split()[1] + "-retry1" == second.stderr.split()[1]


def test_wrong_addresses_and_tokens_are_said_plainly(head: Head, tmp_path: Path) -> None:
    """One message each, which says what to do."""
    job = ["generate", "bundle", "--out", "out", "--num-samples=1"]
    nobody = f"http://127.0.0.1:{free_port()}"
    for environment, address, message in (
        (head.environment, nobody, "nobody answers"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, head.address, "refuses the token"),
        ({}, head.address, "refuses the token"),
    ):
        program = run(["genworker", "submit", "--address", address, *job], tmp_path, environment)
        assert program.process.returncode == 1
        assert message in program.stderr
        assert "Traceback" not in program.stderr


def test_joining_without_the_token_is_said_plainly(head: Head, tmp_path: Path) -> None:
    """Without a token, and with another, at once. README's own is for its owner's eyes only."""
    assert Path(head.environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o077 == 0
    mode = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": head.gcs}
    with contextlib.ExitStack() as stack:
        for program in [
            stack.enter_context(running(["genworker", "doctor"], tmp_path, variables))
            for variables in (mode, mode | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        ]:
            assert program.wait() == 1
            assert f"RAY_ADDRESS '{head.gcs}': cannot join this cluster: a token is wanted" in program.stdout
            assert "Traceback" not in program.stdout + program.stderr


def test_a_submitted_job_that_fails_says_why(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """More actors than the cluster holds: the job fails with that message, and `ray job submit` with it."""
    entry = [
        "jobs/generate.py",
        tiny_bundle,
        "--out",
        str(tmp_path / "out"),
        "--num-samples=600",
        "--actors=9",
        "--wait-timeout=0",
    ]
    program = head.submit(entry, tmp_path, head.environment)
    assert program.process.returncode != 0
    assert "9 actors were asked for" in program.stdout + program.stderr
    assert "Traceback" not in program.stdout + program.stderr


def test_without_a_token_nothing_is_accepted(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """A client without the token, and one with another, are refused: nothing runs."""
    entry = ["jobs/generate.py", tiny_bundle, "--out", str(tmp_path / "out"), "--num-samples=600"]
    for environment in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        program = head.submit(entry, tmp_path, environment)
        assert program.process.returncode != 0
        assert "token" in (program.stdout + program.stderr).lower()
        assert "submitted successfully" not in program.stdout
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_readme(
    head: Head, point_at: Callable[[S3Server], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, by the code that was sent along: a run, its datasets, the run again; no secret is left anywhere."""
    events, page, bucket = tmp_path / "events.jsonl", tmp_path / "page.html", head.s3.new_bucket()
    smaller = {
        "http://head:8265": head.address,
        "s3://my-bucket": f"s3://{bucket}",
        "fashion-tiny": "tiny.yaml",
        "--workers 8": f"--workers 2 --lineage {events}",
        "10000000": "600 --samples-per-shard 100 --actors 2",
        " --use-gpu": "",
        "dt={{ date }}'": "dt={{ date }}' --set use_gpu=false",  # the shipped spec asks for GPUs
    }
    for line in PAGE:
        if line.startswith(("genworker", "ray job")):
            command = functools.reduce(lambda text, pair: text.replace(*pair), smaller.items(), line)
            done = run(["bash", "-euc", command], tmp_path, head.environment, cwd=head.working_dir)
            assert done.process.returncode == 0, command + done.stdout + done.stderr
    point_at(head.s3)
    url = f"s3://{bucket}/runs/gan"
    info = bundles.load_info(open_store(url), BUNDLE_PREFIX)
    assert info.lineage.images_seen == 256
    assert info.lineage.versions["genworker"] == SHIPPED_VERSION
    for name in ("clothes/dt=2026-11-25", "nightly/dt=2026-11-25", "clothes"):
        assert verify(f"s3://{bucket}/{name}") == []
        indices, _, _ = all_samples(f"s3://{bucket}/{name}")
        assert indices.tolist() == list(range(600))
    told = [json.loads(line)["eventType"] for line in events.read_text(encoding="utf-8").splitlines()]
    assert told[:2] == ["START", "COMPLETE"]

    shown = [
        printed("report", url, "--out", page),
        printed("train", head.working_dir / "tiny.yaml", "--out", "s3://no-such-bucket-here/run", fails=True),
    ]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", head.canaries["wrong secret key"])
    shown.append(printed("runs", url, fails=True))
    answers = [
        requests.get(f"{head.address}/api/{path}", headers={"Authorization": f"Bearer {head.token}"}, timeout=30).text
        for path in ("jobs/", "v0/tasks?detail=1", "v0/actors?detail=1")
    ]
    assert "jobs/train.py" in answers[0]
    searched = canaries.assert_nowhere(
        head.canaries | canaries.credentials_of(head.s3),
        [
            *(("printed", text.encode()) for text in shown),
            *(("Ray's API", text.encode()) for text in answers),
            *canaries.stored(head.s3, bucket),
            *canaries.files_below(tmp_path),  # what the commands printed and left below their HOME, events, page
            *canaries.files_below(head.folder),
            *canaries.files_below(head.session),
        ],
    )
    for part in ("spec.json", "metrics.jsonl", "environment.jsonl", "mlflow.json", "checkpoints/", "bundle/"):
        assert any(name.startswith(f"runs/gan/{part}") for name in searched), part
    for part in ("runs/gan/tensorboard/events", "/mlruns/", "/job-driver-", "/raylet.out", "page.html", "events.jsonl"):
        assert any(part in name for name in searched), part


def test_a_client_with_another_python_is_told_so(head: Head, tiny_bundle: str, tmp_path: Path) -> None:
    """Joining the cluster with a Python that is not the cluster's is one clear message, and nothing is written."""
    out = tmp_path / "out"
    code = "import sys; import ray, torch; from genworker.cli import main; sys.version_info = (3, 11, 99, 'final', 0); main()"
    command = ["python", "-c", code, "generate", tiny_bundle, "--out", str(out), "--num-samples=600"]
    program = run(command, tmp_path, head.environment | {"RAY_ADDRESS": head.gcs})
    assert program.process.returncode == 1, program.stdout + program.stderr
    assert "runs other versions than this machine" in program.stderr
    assert "3.11.99" in program.stderr
    assert "Traceback" not in program.stderr
    assert not out.exists()


def printed(*args: object, fails: bool = False) -> str:
    """What a command of genworker prints that runs in this process."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert (result.exit_code != 0) is fails, result.output
    return result.output


def test_the_search_for_secrets_finds_them() -> None:
    """As they are, in base64 at any offset, and in names."""
    secret = canaries.canary()
    for text in (f"x{secret}y", *(base64.b64encode(f"{'x' * n}{secret}yy".encode()).decode() for n in range(4))):
        with pytest.raises(AssertionError, match="key in here"):
            canaries.assert_nowhere({"key": secret}, [("fine", b"nothing"), ("here", text.encode())])
    with pytest.raises(AssertionError, match="key in "):
        canaries.assert_nowhere({"key": secret}, [(f"data/{secret}.png", b"")])
    assert canaries.assert_nowhere({"key": secret}, [("fine", canaries.canary().encode())]) == ["fine"]
