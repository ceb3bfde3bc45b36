"""What a job exports, read back where Prometheus reads it: the port of a node of a real Ray cluster."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
import ray
import torch

from genworker.bulk.job import generate
from genworker.bulk.metrics import EXPORT_PREFIX, METRICS, Meters
from genworker.bulk.request import GenerateSpec
from genworker.bulk.shard import ShardMaker
from genworker.stores import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.bulk.progress import Progress

ROLE = "test"
SECONDS = 30.0
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def scrape(role: str = ROLE) -> tuple[dict[str, float], dict[str, str]]:
    """Values of a role by name, those of stages summed, and the kind of each of our metrics, as the node's port shows them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=5).read().decode()
    ours = [match for match in SAMPLE.findall(text) if f'role="{role}"' in match[1]]
    # Alerts tell clusters apart by it.
    assert all('SessionName="' in labels for _, labels, _ in ours)
    values: dict[str, float] = {}
    for name, _, value in ours:
        values[name] = values.get(name, 0.0) + float(value)
    return values, dict(re.findall(rf"^# TYPE ({EXPORT_PREFIX}genworker_\w+) (\w+)$", text, re.MULTILINE))


def test_what_is_exported_is_the_table(ray_cluster: int) -> None:
    """Every metric of the table arrives under its name with its kind and value, and no other that begins like ours."""
    meters = Meters(ROLE)
    expected = {}
    for value, metric in enumerate(METRICS, start=1):
        expected[EXPORT_PREFIX + metric.name] = float(value)
        if metric.kind == "gauge":
            meters.show(metric.name, value)
        else:
            tags = {tag: "encode" for tag in metric.tags if tag != "role"}
            meters.count(metric.name, value, **tags)
            meters.count(metric.name, 0, **tags)
    deadline = time.monotonic() + SECONDS
    while (seen := scrape())[0] != expected and time.monotonic() < deadline:
        time.sleep(0.3)
    assert seen[0] == expected
    assert seen[1] == {EXPORT_PREFIX + metric.name: metric.kind for metric in METRICS}


def test_a_job_exports_what_its_summary_says(tiny_bundle: str, tmp_path: Path, ray_cluster: int) -> None:
    """After a real job with failed attempts and a shard that was there already, the port shows its numbers as the driver's."""
    Meters("before").count("genworker_samples_total")  # once it is there, so is all that this process counted before
    await_values("before", {"genworker_samples_total": 1.0})
    before, _ = scrape("driver")
    data = tmp_path / "data"

    def interfere(progress: Progress) -> None:
        if not progress.event:
            if progress.plan_id and not data.exists():  # before there is a plan, the job would refuse it
                data.write_bytes(b"no folder, so that the first puts fail")
        elif "failed" in progress.event and data.is_file():
            maker = ShardMaker(open_store(str(tmp_path)), torch.device("cpu"))
            task = maker.plan.task(7)  # which nobody is at yet: two actors hold two shards each
            data.unlink()
            data.mkdir(exist_ok=True)
            (tmp_path / task.key).write_bytes(maker.encode(task))

    spec = GenerateSpec(
        bundle=tiny_bundle, out=str(tmp_path), num_samples=256, samples_per_shard=32, micro_batch=32, actors=2
    )
    result = generate(spec, interfere)
    attempts = result.summary["attempts"]
    assert attempts["failed"] >= 1
    assert attempts["duplicate"] >= 1
    expected = {
        "genworker_samples_total": 256,
        "genworker_bytes_total": result.manifest.num_bytes,
        "genworker_shards_committed_total": 8,
        "genworker_shards_failed_total": attempts["failed"],
        "genworker_shards_duplicate_total": attempts["duplicate"],
        "genworker_stage_seconds_total": sum(result.summary["stages"].values()),
    }
    for name in expected:
        expected[name] += before.get(EXPORT_PREFIX + name, 0.0)
    await_values("driver", expected | {"genworker_queue_depth": 0})
    assert scrape("driver")[0][EXPORT_PREFIX + "genworker_actors"] in {1.0, 2.0}


def await_values(role: str, expected: dict[str, float]) -> None:
    """Wait until the port shows these values of a role, among others."""
    # A summary has seven stages in whole milliseconds.
    wanted = {EXPORT_PREFIX + name: pytest.approx(value, abs=0.004) for name, value in expected.items()}
    deadline = time.monotonic() + SECONDS
    while True:
        seen, _ = scrape(role)
        seen = {name: value for name, value in seen.items() if name in wanted}
        if seen == wanted or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    assert seen == wanted


def test_tags_never_name_what_has_no_end() -> None:
    """Roles and stages are few; shards, actors, jobs and nodes are not, and each value would be a series for ever."""
    assert {tag for metric in METRICS for tag in metric.tags} == {"role", "stage"}
    assert all(metric.name.startswith("genworker_") for metric in METRICS)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)


def test_a_name_outside_the_table_is_refused(ray_cluster: int) -> None:
    """Nobody exports what the table does not have."""
    with pytest.raises(KeyError):
        Meters(ROLE).count("genworker_surprises_total")
