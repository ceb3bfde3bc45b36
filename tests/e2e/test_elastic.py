"""Training on a cluster of two nodes, one of which is killed or announced to go away: the run goes on with what is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml

from genworker.stores import open_store
from genworker.training import checkpoint, record
from tests import hosts
from tests.fakes.training import tiny_training
from tests.nodes import ENVIRONMENT, NODE, drain
from tests.processes import run, running
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.processes import Program

pytestmark = pytest.mark.slow

CHECKPOINT_EVERY, REPORT_EVERY = 1_024, 512
SPEC = tiny_training(
    {
        "images": 200_000,
        "precision": "float32",
        "report_every_images": REPORT_EVERY,
        "checkpoint_every_images": CHECKPOINT_EVERY,
        "callbacks": [],
    },
    seed=1,
    evaluation={"num_samples": 0},
    resources={"workers": [1, 2], "collective_timeout_seconds": 20},
)


@dataclass(frozen=True)
class Cluster:
    """A head and a second node, each a program with one CPU."""

    address: str
    second: Program

    def environment(self) -> dict[str, str]:
        """For a driver."""
        return {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray node on loopback, ended by its process ids."""
    folder = tmp_path_factory.mktemp("head")
    address = f"127.0.0.1:{free_port()}"
    command = ["ray", "start", "--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", *NODE]
    with running(command, folder, ENVIRONMENT):
        ready = ["python", "-c", f"import ray; ray.init('{address}', logging_level='ERROR')"]
        for _ in range(20):
            if run(ready, folder, ENVIRONMENT).process.returncode == 0:
                break
        yield address


@pytest.fixture
def cluster(head: str, tmp_path: Path) -> Iterator[Cluster]:
    """The head with a second node, for one test to lose."""
    command = ["ray", "start", f"--address={head}", '--resources={"second": 1}', *NODE]
    with running(command, tmp_path, ENVIRONMENT) as second:
        yield Cluster(head, second)


def worlds(url: Path) -> list[int]:
    """The number of workers at each start of a run."""
    return [line["world_size"] for line in record.read_lines(open_store(str(url)), record.ENVIRONMENT_KEY)]


# A driver that tells every report that it hears of; the command's own log has a progress line every few seconds.
DRIVER = """
import sys, yaml
from genworker.training import trainer
from genworker.training.spec import TrainSpec

def tell(text):
    print(text, file=sys.stderr, flush=True)

spec = TrainSpec.parse(yaml.safe_load(open(sys.argv[1], encoding="utf-8")), origin="spec")
trainer.train(spec, sys.argv[2], lambda metrics: tell(f"report {metrics['images_seen']:.0f}"), tell)
"""


@contextlib.contextmanager
def training_on_two(cluster: Cluster, folder: Path) -> Iterator[tuple[Program, Path]]:
    """A run that trains with both nodes and has stored a checkpoint; and its URL."""
    spec, out = folder / "spec.yaml", folder / "run"
    spec.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    with running(["python", "-c", DRIVER, str(spec), str(out)], folder, cluster.environment()) as program:
        program.wait_until(lambda: out.is_dir() and bool(checkpoint.keys(open_store(str(out)))))
        yield program, out


def reported(lines: str) -> int:
    """The largest number of images in reports that a driver told."""
    return max(int(images) for images in re.findall(r"^report (\d+)$", lines, re.MULTILINE))


@pytest.mark.skipif(hosts.available(), reason="played on hosts with networks of their own, in test_hosts.py")
def test_a_killed_node_costs_a_checkpoint_interval_and_an_upload(cluster: Cluster, tmp_path: Path) -> None:
    """SIGKILL of every process of a node: the run goes on with one worker from the newest checkpoint, on the same batches."""
    with training_on_two(cluster, tmp_path) as (program, out):
        assert worlds(out) == [2]
        program.wait_until(lambda: "\nreport " in program.stderr)
        for process in cluster.second.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        program.wait_until(lambda: "1 worker goes on from image" in program.stderr and len(worlds(out)) > 1)
        assert worlds(out) == [2, 1]
        start = record.read_lines(open_store(str(out)), record.ENVIRONMENT_KEY)[-1]["images_seen"]
        trained = reported(program.stderr.split("1 worker goes on from image")[0])
        # Reports and checkpoints are on their grids, so all that was trained behind the last checkpoint is in the reports
        # but for less than one; the upload, of a few kilobytes to a local disk, may take until the next.
        assert start % CHECKPOINT_EVERY == 0
        assert 0 <= trained - start <= CHECKPOINT_EVERY + REPORT_EVERY
        program.wait_until(lambda: checkpoint.images_of(checkpoint.keys(open_store(str(out)))[0]) > start)


DRAIN = drain('"second" in node["Resources"]', seconds=600)


def test_a_node_that_is_announced_to_go_away_costs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Ray's preemption notice: the workers save where they are, and the run goes on from there without the node."""
    with training_on_two(cluster, tmp_path) as (program, out):
        done = run(["python", "-c", DRAIN, cluster.address], tmp_path, cluster.environment())
        assert done.process.returncode == 0, done.stdout + done.stderr
        program.wait_until(lambda: len(worlds(out)) > 1)
        assert worlds(out) == [2, 1]
        stops = [checkpoint.images_of(key) for key in checkpoint.keys(open_store(str(out)))]
        start = record.read_lines(open_store(str(out)), record.ENVIRONMENT_KEY)[-1]
        assert start["images_seen"] in stops
        assert "will go away: saving" in program.stderr


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """What a scheduler does to a driver: it saves at the step where it is, ends with 143, and loses nothing."""
    spec, out = tmp_path / "spec.yaml", tmp_path / "run"
    spec.write_text(yaml.safe_dump(SPEC | {"resources": {"workers": 2}}), encoding="utf-8")
    events = tmp_path / "events.jsonl"
    command = ["genworker", "train", str(spec), "--out", str(out), "--lineage", str(events)]
    with running(command, tmp_path) as program:
        program.wait_until(lambda: out.is_dir() and bool(checkpoint.keys(open_store(str(out)))))
        program.leftovers |= program.family()
        program.process.terminate()
        assert program.wait() == 143
    assert "run the same command again to go on" in program.stderr
    newest = checkpoint.images_of(checkpoint.keys(open_store(str(out)))[0])
    assert newest % CHECKPOINT_EVERY  # not a checkpoint of the rhythm, but of the stop
    assert not (out / "bundle").exists()
    told = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert [(event["eventType"], event["job"]["name"]) for event in told] == [
        ("START", "train.spec"),
        ("ABORT", "train.spec"),
    ]
