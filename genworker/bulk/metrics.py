"""The metrics that a bulk job exports through Ray, as one table: dashboards and alerts may name these and no others.

In: counts of a process. Out: time series at the metrics port of its node, where Ray puts `EXPORT_PREFIX` before each name.
Tags are the role of the process and, of seconds, the stage; never a shard, actor or job, whose series would never end.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

EXPORT_PREFIX = "ray_"


class MetricDefinition(NamedTuple):
    """One row of the table: ``kind`` is that of Prometheus."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...]


METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition("genworker_samples_total", "counter", "samples in shards that were committed", ("role",)),
    MetricDefinition("genworker_bytes_total", "counter", "bytes of shards that were committed", ("role",)),
    MetricDefinition("genworker_shards_committed_total", "counter", "shards that got their first receipt", ("role",)),
    MetricDefinition("genworker_shards_failed_total", "counter", "attempts at a shard that failed", ("role",)),
    MetricDefinition(
        "genworker_shards_duplicate_total",
        "counter",
        "attempts that found their shard stored with equal bytes",
        ("role",),
    ),
    MetricDefinition(
        "genworker_shards_speculative_total", "counter", "second attempts at a shard that took long", ("role",)
    ),
    MetricDefinition("genworker_actors_lost_total", "counter", "actors that died before the job ended", ("role",)),
    MetricDefinition("genworker_stage_seconds_total", "counter", "busy seconds of each stage", ("role", "stage")),
    MetricDefinition("genworker_queue_depth", "gauge", "tasks that actors hold and have not answered", ("role",)),
    MetricDefinition("genworker_actors", "gauge", "actors that are ready for tasks", ("role",)),
)


class Meters:
    """The metrics of one process in its role; needs a connection to Ray."""

    def __init__(self, role: str) -> None:
        from ray.util import metrics as ray_metrics

        kinds = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}
        self._meters: dict[str, Any] = {
            metric.name: kinds[metric.kind](metric.name, description=metric.description, tag_keys=metric.tags)
            for metric in METRICS
        }
        self._role = role

    def count(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter of the table; nothing is added for zero. Raises KeyError for a name that it lacks."""
        meter = self._meters[name]
        if value > 0:
            meter.inc(value, tags={"role": self._role, **tags})

    def show(self, name: str, value: float) -> None:
        """Set a gauge of the table."""
        self._meters[name].set(value, tags={"role": self._role})
