"""The watchdog: reads every report of a run, raises alarms, and says when a run has diverged. It changes nothing itself.

In: reports (rank 0's, with the family's measures) and timings of all ranks. Out: alarms, one `Verdict` per report, and the
state that a checkpoint keeps. What it watches comes from the family (`Band`) and from the loop (steps that were not
finite, the size of gradients, the speed, ranks that lag).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import median, median_low
from typing import Any

from genworker.families.base import Band
from genworker.registry import nearest
from genworker.training.watchdog_spec import WatchdogSpec

_REMEMBERED = 20  # reports that a usual value is taken from, and that steps which were not finite are counted over
_MIN_REMEMBERED = 3
_GROWTH = "growth of "

_Raise = Callable[[str, str], None]  # kind, text


class Verdict(IntEnum):
    """What the loop is to do after a report; rank 0's verdict is everybody's."""

    GO_ON = 0
    ROLL_BACK = 1
    STOP = 2  # asked for from outside
    GIVE_UP = 3


@dataclass(frozen=True)
class Alarm:
    """Something that was seen: ``kind`` is a metric's name or what the loop watches; ``text`` is one line for the user."""

    images_seen: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"at image {self.images_seen}: {self.text}"


class Watchdog:
    """Judges reports; see the module. ``alarms`` holds all that were raised since the run began or resumed."""

    def __init__(self, spec: WatchdogSpec, bands: Sequence[Band], nonfinite_steps: int = 0) -> None:
        """Watch ``bands``, as the spec overrides them, from ``nonfinite_steps`` counted on."""
        self._spec = spec
        self._bands = [_with_override(band, spec.bands) for band in bands]
        known = {band.metric for band in bands}
        self._bands += [
            Band(metric, *limits, meaning="the band is set by the spec", from_progress=0.0)
            for metric, limits in spec.bands.items()
            if metric not in known
        ]
        self.alarms: list[Alarm] = []
        self._unproven = set(spec.bands)  # bands of the spec, until the first report shows what they are of
        self._outside: dict[str, int] = {}  # reports in a row outside, by what is watched
        self._usual: dict[str, list[float]] = {}
        self._nonfinite = [nonfinite_steps]  # the count at each of the last reports
        self._skipped = 0
        # What a clock decides stays out of checkpoints, whose bytes are those of an unbroken run.
        self._slow: dict[str, int] = {}
        self._speeds: dict[str, list[float]] = {}

    def dump(self) -> dict[str, Any]:
        """What a resumed watchdog has to know, as JSON; a copy, because it is stored while the watchdog goes on."""
        return {
            "outside": {kind: count for kind, count in self._outside.items() if count},
            "usual": {name: list(values) for name, values in self._usual.items()},
            "nonfinite": list(self._nonfinite),
            "skipped": self._skipped,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `dump` gave; an empty mapping changes nothing."""
        if state:
            self._outside = dict(state["outside"])
            self._usual = {name: list(values) for name, values in state["usual"].items()}
            counts = state["nonfinite"]
            # Older checkpoints hold the count at the start and at the last report.
            self._nonfinite = list(counts) if isinstance(counts, list) else [state["nonfinite_before"], counts]
            self._skipped = int(state["skipped"])

    def judge(
        self, metrics: Mapping[str, Any], progress: float, busy_seconds: Sequence[float], steps: int
    ) -> tuple[bool, list[Alarm]]:
        """Look at a report.

        Args:
            metrics: the report, with ``images_seen``, ``nonfinite_steps``, ``skipped_steps``, ``images_per_second``.
            progress: share of the run that is done.
            busy_seconds: by rank, time spent computing and waiting for data since the last report, not waiting for others.
            steps: training steps since the last report.

        Returns:
            Whether the run has diverged, and the alarms of this report; an alarm is raised once per excursion.
        """
        here = int(metrics["images_seen"])
        found = [Alarm(here, metric, text) for metric, text in self._useless_bands(metrics)]
        diverged = self._judge_steps(metrics, steps, lambda kind, text: found.append(Alarm(here, kind, text)))
        diverged |= self._judge_values(metrics, progress, lambda kind, text: found.append(Alarm(here, kind, text)))
        self._judge_speed(metrics, busy_seconds, lambda kind, text: found.append(Alarm(here, kind, text)))
        self.alarms += found
        return diverged, found

    def good(self) -> bool:
        """Whether nothing that means divergence is outside its band now, so that a checkpoint is worth going back to."""
        fatal = {"nonfinite_steps", *(band.metric for band in self._bands if band.action == "rollback")}
        return not any(count for kind, count in self._outside.items() if kind in fatal or kind.startswith(_GROWTH))

    def rolled_back(self, nonfinite_steps: int) -> None:
        """Begin anew after a rollback; what is usual stays."""
        self._outside.clear()
        self._nonfinite = [nonfinite_steps]

    def _useless_bands(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The spec's bands of what no report holds: whoever set them believes that it is watched."""
        for metric in sorted(self._unproven):
            if isinstance(metrics.get(metric), int | float):
                continue
            hint = nearest(metric, metrics.keys() - {metric})
            yield metric, f"watchdog.bands {metric}: reports hold no such number, so nothing is watched by it{hint}"
        self._unproven = set()

    def _judge_steps(self, metrics: Mapping[str, Any], steps: int, alarm: _Raise) -> bool:
        total = int(metrics["nonfinite_steps"])
        recent, new = total - self._nonfinite[0], total - self._nonfinite[-1]
        self._nonfinite = [*self._nonfinite, total][-_REMEMBERED:]
        diverged = recent > self._spec.max_nonfinite_steps
        if diverged:
            alarm(
                "nonfinite_steps",
                f"{recent} steps had a non-finite loss or gradient within {_REMEMBERED} reports, more than "
                f"watchdog.max_nonfinite_steps {self._spec.max_nonfinite_steps}; lower family.lr, raise family.gamma for a "
                "GAN, or set training.precision float32",
            )
        elif _counts(self._outside, "nonfinite_steps", outside=new > 0, patience=1):
            alarm("nonfinite_steps", f"{new} steps had a non-finite loss or gradient and were skipped")
        skipped = int(metrics["skipped_steps"]) - self._skipped
        self._skipped = int(metrics["skipped_steps"])
        too_many = skipped > self._spec.max_skipped_share * max(1, steps)
        if _counts(self._outside, "skipped_steps", outside=too_many, patience=1):
            alarm(
                "skipped_steps",
                f"{skipped} of {steps} steps were skipped for a gradient beyond family.skip_norm; lower family.lr, or raise "
                "family.skip_norm if the losses are healthy",
            )
        return diverged

    def _judge_values(self, metrics: Mapping[str, Any], progress: float, alarm: _Raise) -> bool:
        diverged, patience = False, self._spec.patience
        for band in self._bands:
            value = metrics.get(band.metric)
            if not isinstance(value, int | float) or progress < band.from_progress:
                continue
            if _counts(self._outside, band.metric, outside=_is_outside(value, band), patience=patience):
                diverged |= band.action == "rollback"
                alarm(band.metric, f"{band.metric} is {value:.4g}, its band is {_range(band)}: {band.meaning}")
        for name in (name for name in metrics if name.endswith(".grad_norm")):
            value, growth = float(metrics[name]), self._spec.gradient_growth
            usual = _usual(self._usual, name, value, at_most=growth)
            # Apart from a band of the same metric, which counts by itself.
            if _counts(self._outside, _GROWTH + name, outside=not value <= growth * usual, patience=patience):
                diverged = True
                alarm(name, f"{name} is {value:.4g}, more than {growth:g} times its usual size {usual:.4g}")
        return diverged

    def _judge_speed(self, metrics: Mapping[str, Any], busy_seconds: Sequence[float], alarm: _Raise) -> None:
        patience = self._spec.patience
        speed = float(metrics["images_per_second"])
        usual = _usual(self._speeds, "images_per_second", speed)
        slow = speed < self._spec.min_speed_share * usual
        if _counts(self._slow, "images_per_second", outside=slow, patience=patience):
            alarm(
                "images_per_second",
                f"{speed:.0f} images/s, usual are {usual:.0f}; look at data_wait_share, and at what else runs there",
            )
        middle = median_low(busy_seconds)  # of two ranks, the faster one
        slowest = max(range(len(busy_seconds)), key=lambda rank: busy_seconds[rank])
        lags = busy_seconds[slowest] > self._spec.max_rank_lag * middle
        if _counts(self._slow, "rank_lag", outside=lags, patience=patience):
            alarm(
                "rank_lag",
                f"rank {slowest} takes {busy_seconds[slowest] / middle:.1f} times as long per step as the median rank, and all "
                "others wait for it; look at the load of its node, or at worst_data_wait_share if it waits for data",
            )


def _counts(outside_by_kind: dict[str, int], kind: str, *, outside: bool, patience: int) -> bool:
    """Count a report outside; True when this is the one that raises the alarm."""
    outside_by_kind[kind] = outside_by_kind.get(kind, 0) + 1 if outside else 0
    return outside_by_kind[kind] == patience


def _usual(seen_by_name: dict[str, list[float]], name: str, value: float, at_most: float = math.inf) -> float:
    """The median of the values seen before; of new ones only those up to ``at_most`` times as large are remembered."""
    seen = seen_by_name.setdefault(name, [])
    usual = median(seen) if len(seen) >= _MIN_REMEMBERED else value
    if math.isfinite(value) and (len(seen) < _MIN_REMEMBERED or value <= at_most * usual):
        seen.append(value)
        del seen[:-_REMEMBERED]
    return usual


def _with_override(band: Band, bands: Mapping[str, tuple[float | None, float | None]]) -> Band:
    if band.metric not in bands:
        return band
    low, high = bands[band.metric]
    return Band(band.metric, low, high, band.meaning, band.action, band.from_progress)


def _is_outside(value: float, band: Band) -> bool:
    low, high = band.low, band.high
    return not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high)


def _range(band: Band) -> str:
    low = "-inf" if band.low is None else f"{band.low:g}"
    high = "inf" if band.high is None else f"{band.high:g}"
    return f"[{low}, {high}]"
