"""A training run as it is seen from outside: what it has left at its URL, and what follows from that.

A run may be going on, stopped, diverged or finished, and whatever is not there yet is empty. `genworker.report.reader` reads
it. Nothing here touches a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from genworker import bundle as bundles
from genworker import metrics as metric_table
from genworker.training import record

State = Literal["running", "stopped", "diverged", "finished"]
Line = dict[str, Any]

_QUIET_SECONDS = 120.0  # a run that writes more seldom than it should for so long has stopped
_START_SECONDS = 600.0  # how long a run may take until its first checkpoint


@dataclass(frozen=True)
class Run:
    """A run as it is seen from outside.

    Attributes:
        url: where it lies.
        spec: as it was resolved, the JSON of spec.json.
        reports: the lines of metrics.jsonl; a value is a number, None where it was not finite, or one per latent.
        taken_back: reports that rollbacks took back, one list per rollback.
        alarms: the lines of alarms.jsonl.
        starts: the lines of environment.jsonl, one per start or resume.
        evaluations: by images seen, each with ``images_seen`` and ``metrics``.
        pictures: keys of sample grids by images seen.
        checkpoints: images seen of each checkpoint that is kept.
        bundle: of the finished run.
        last_written: seconds since the epoch; 0 when nothing was.
        now: seconds since the epoch when this was read.
        restarted: whether the run was started again after its last alarm was stored.
        damaged: what could not be read, one sentence each.
    """

    url: str
    spec: Line = field(default_factory=dict)
    reports: Sequence[Line] = ()
    taken_back: Sequence[Sequence[Line]] = ()
    alarms: Sequence[Line] = ()
    starts: Sequence[Line] = ()
    evaluations: Sequence[Line] = ()
    pictures: dict[int, str] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()
    bundle: bundles.BundleInfo | None = None
    last_written: float = 0.0
    now: float = 0.0
    restarted: bool = False
    damaged: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def family(self) -> str:
        """The name of the family, or ``?``."""
        return str(at(self.spec, "family", "name") or "?")

    @property
    def planned_images(self) -> int:
        """How many images the run is to see, 0 when its spec does not say."""
        return int(at(self.spec, "training", "images") or 0)

    @property
    def last_report(self) -> Line:
        """The newest report, or an empty one."""
        return self.reports[-1] if self.reports else {}

    @property
    def images_seen(self) -> int:
        """As far as is stored."""
        seen = [int(self.last_report.get("images_seen", 0)), *self.checkpoints]
        return max([*seen, self.bundle.lineage.images_seen if self.bundle else 0])

    @property
    def training_seconds(self) -> float:
        """The time that the kept reports took, all starts together."""
        return sum(float(report.get("seconds") or 0.0) for report in self.reports)

    @property
    def quiet_seconds(self) -> float:
        """How long nothing was written."""
        return max(0.0, self.now - self.last_written)

    @property
    def state(self) -> State:
        """``finished`` with its bundle, ``diverged`` when it gave up, ``running`` while it writes as often as it should."""
        if self.bundle is not None:
            return "finished"
        if self._gave_up:
            return "diverged"
        return "running" if self.quiet_seconds <= self._patience_seconds() else "stopped"

    @property
    def metric(self) -> str:
        """The number that decides which checkpoints are the best."""
        return str(at(self.spec, "evaluation", "metric") or "frechet")

    @property
    def best_evaluation(self) -> Line | None:
        """The evaluation with the best value of `metric`; the earlier one of equals."""
        high = metric_table.numbers().get(self.metric) == "high"
        order = record.best_evaluations(list(self.evaluations), self.metric, higher_is_better=high)
        return next((line for line in self.evaluations if order and line["images_seen"] == order[0]), None)

    @property
    def _gave_up(self) -> bool:
        last = self.alarms[-1] if self.alarms else {}
        same = last.get("images_seen") == self.last_report.get("images_seen", last.get("images_seen"))
        return last.get("kind") == "gave_up" and same and not self.restarted

    def _patience_seconds(self) -> float:
        every = int(at(self.spec, "training", "checkpoint_every_images") or 0)
        speed = float(self.last_report.get("images_per_second") or 0.0)
        if not self.checkpoints or speed <= 0.0:
            return _START_SECONDS
        return _QUIET_SECONDS + 3 * every / speed


def at(values: Any, *path: str) -> Any:
    """What lies at ``path`` in nested mappings, or None."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
