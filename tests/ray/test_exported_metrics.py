"""What a job exports, read back where Prometheus reads it: the port of a node of a real Ray cluster."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from genworker.bulk.metrics import EXPORT_PREFIX, METRICS, Meters

ROLE = "test"
SECONDS = 30.0
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def scrape() -> tuple[dict[str, float], dict[str, str]]:
    """Values of our role by name, and the kind of each of our metrics, as the node's metrics port shows them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=5).read().decode()
    ours = [match for match in SAMPLE.findall(text) if f'role="{ROLE}"' in match[1]]
    # Alerts tell clusters apart by it.
    assert all('SessionName="' in labels for _, labels, _ in ours)
    return {name: float(value) for name, _, value in ours}, dict(
        re.findall(rf"^# TYPE ({EXPORT_PREFIX}genworker_\w+) (\w+)$", text, re.MULTILINE)
    )


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


def test_tags_never_name_what_has_no_end() -> None:
    """Roles and stages are few; shards, actors, jobs and nodes are not, and each value would be a series for ever."""
    assert {tag for metric in METRICS for tag in metric.tags} == {"role", "stage"}
    assert all(metric.name.startswith("genworker_") for metric in METRICS)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)


def test_a_name_outside_the_table_is_refused(ray_cluster: int) -> None:
    """Nobody exports what the table does not have."""
    with pytest.raises(KeyError):
        Meters(ROLE).count("genworker_surprises_total")
