"""What a job counts: the totals of its summary and the metrics that it exports are the same numbers.

In: counts under the names of `genworker.bulk.metrics`. Out: totals, and what an exporter makes of each count.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Protocol

from genworker.bulk.records import Receipt
from genworker.bulk.stages import StageSeconds


class Exporter(Protocol):
    """Where counts go besides the totals; see `genworker.bulk.metrics.Meters`."""

    def count(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter."""
        ...

    def show(self, name: str, value: float) -> None:
        """Set a gauge."""
        ...


class Tally:
    """Counts of one run of a job.

    Attributes:
        totals: by name, without ``genworker_`` and ``_total``.
        stages: seconds by stage of all receipts of this run.
        actor_seconds: how long actors were ready, together.
        peak_actors: how many were ready at a time.
    """

    def __init__(self, exporter: Exporter | None = None) -> None:
        self._exporter = exporter
        self.totals: dict[str, float] = {}
        self.stages = StageSeconds()
        self.actor_seconds = 0.0
        self.peak_actors = 0
        self._shown: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        return self.totals.get(name, 0)

    def count(self, name: str, value: float = 1.0) -> None:
        """Add to ``genworker_<name>_total``."""
        self.totals[name] = self[name] + value
        if self._exporter is not None:
            self._exporter.count(f"genworker_{name}_total", value)

    def show(self, name: str, value: float) -> None:
        """Set ``genworker_<name>``."""
        if self._exporter is not None and self._shown.get(name) != value:
            self._exporter.show(f"genworker_{name}", value)
        self._shown[name] = value

    def ready(self, num_actors: int, seconds: float) -> None:
        """Note that so many actors were ready for so long."""
        self.actor_seconds += num_actors * seconds
        self.peak_actors = max(self.peak_actors, num_actors)
        self.show("actors", num_actors)

    def attempt(self, receipt: Receipt) -> None:
        """Count an attempt that succeeded, first or not."""
        if receipt.duplicate:
            self.count("shards_duplicate")
        if receipt.stages is None:
            return
        self.stages.add(receipt.stages)
        if self._exporter is not None:
            for stage, seconds in asdict(receipt.stages).items():
                self._exporter.count("genworker_stage_seconds_total", seconds, stage=stage)

    def committed(self, receipt: Receipt) -> None:
        """Count a shard that got its first receipt."""
        self.count("shards_committed")
        self.count("samples", receipt.num_samples)
        self.count("bytes", receipt.num_bytes)
