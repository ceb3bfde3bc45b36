"""The watchdog says once, and in words, what left its band; and tells apart what is odd from what has diverged."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from genworker.families.base import Band
from genworker.training.watchdog import Alarm, Watchdog
from genworker.training.watchdog_spec import WatchdogSpec

SIGN = Band("d.sign", -0.5, 0.8, "the discriminator knows its images by heart")
LOSS = Band("loss", None, 1e4, "the loss runs away", action="rollback")


class Run:
    """A watchdog that is fed reports, one per 100 images."""

    def __init__(self, *bands: Band, **spec: Any) -> None:
        self.watchdog = Watchdog(WatchdogSpec(**spec), bands)
        self.images_seen = 0
        self.nonfinite = 0
        self.skipped = 0

    def report(
        self,
        *,
        progress: float = 0.5,
        speed: float = 100.0,
        seconds: tuple[float, ...] = (1.0, 1.0),
        nonfinite: int = 0,
        skipped: int = 0,
        **values: Any,
    ) -> tuple[bool, list[Alarm]]:
        self.images_seen += 100
        self.nonfinite += nonfinite
        self.skipped += skipped
        metrics = {
            "images_seen": self.images_seen,
            "nonfinite_steps": self.nonfinite,
            "skipped_steps": self.skipped,
            "images_per_second": speed,
            **{name.replace("__", "."): value for name, value in values.items()},
        }
        return self.watchdog.judge(metrics, progress, seconds, steps=10)


def kinds(found: tuple[bool, list[Alarm]]) -> list[str]:
    return [alarm.kind for alarm in found[1]]


def test_a_healthy_run_raises_nothing() -> None:
    """Values inside their bands, steady gradients and speeds: no alarm, and every checkpoint is good."""
    run = Run(SIGN, LOSS)
    for step in range(30):
        found = run.report(d__sign=0.3, loss=100.0, g__grad_norm=1.0 + 0.5 * (step % 2), speed=100 + step)
        assert found == (False, [])
        assert run.watchdog.good()


def test_an_alarm_is_raised_once_after_its_patience_and_again_after_a_recovery() -> None:
    """The third report in a row outside raises the alarm, the fourth does not repeat it, a new excursion does."""
    run = Run(SIGN, patience=3)
    outside = [kinds(run.report(d__sign=0.9)) for _ in range(5)]
    assert outside == [[], [], ["d.sign"], [], []]
    run.report(d__sign=0.1)
    assert [kinds(run.report(d__sign=-0.9)) for _ in range(3)][-1] == ["d.sign"]


def test_an_alarm_says_value_band_and_meaning() -> None:
    """One line tells what was seen, where it should be, and what it means."""
    _, (alarm,) = Run(SIGN, patience=1).report(d__sign=0.9)
    assert (
        str(alarm)
        == "at image 100: d.sign is 0.9, its band is [-0.5, 0.8]: the discriminator knows its images by heart"
    )


def test_the_beginning_of_a_run_is_not_judged() -> None:
    """A band holds only from its share of the run on."""
    run = Run(SIGN, patience=1)
    assert kinds(run.report(d__sign=0.9, progress=0.04)) == []
    assert kinds(run.report(d__sign=0.9, progress=0.06)) == ["d.sign"]


@pytest.mark.parametrize("value", [2e4, math.nan, math.inf])
def test_a_band_that_means_divergence_says_so(value: float) -> None:
    """A loss beyond its band, or no number at all, is a divergence after its patience."""
    run = Run(LOSS, patience=2)
    assert [run.report(loss=value)[0] for _ in range(2)] == [False, True]


def test_only_what_means_divergence_makes_a_checkpoint_not_worth_going_back_to() -> None:
    """A warning may stand for a whole run; a loss, a gradient or a step on the way to divergence may not."""
    run = Run(SIGN, LOSS)
    run.report(d__sign=0.9, loss=1.0, g__grad_norm=1.0)
    assert run.watchdog.good()
    for bad in ({"loss": 2e4}, {"loss": 1.0, "g__grad_norm": math.inf}, {"loss": 1.0, "nonfinite": 1}):
        run.report(d__sign=0.9, **{"g__grad_norm": 1.0, **bad})
        assert not run.watchdog.good()
        run.report(d__sign=0.9, loss=1.0, g__grad_norm=1.0)
        assert run.watchdog.good()


def test_the_spec_overrides_and_adds_bands() -> None:
    """A band of the spec replaces the family's, and may watch any metric."""
    run = Run(SIGN, patience=1, bands={"d.sign": (None, 0.95), "kl": (1.0, None)})
    assert kinds(run.report(d__sign=0.9, kl=2.0)) == []
    assert kinds(run.report(d__sign=0.96, kl=0.5)) == ["d.sign", "kl"]


def test_a_band_of_nothing_is_told_once() -> None:
    """Whoever set it believes that it is watched."""
    run = Run(SIGN, bands={"d.sing": (None, 0.95), "kl": (1.0, None), "notes": (0.0, 1.0)})
    _, found = run.report(d__sign=0.9, kl=2.0, notes="none")
    assert [alarm.kind for alarm in found] == ["d.sing", "notes"]
    assert "nothing is watched by it; did you mean 'd.sign'?" in found[0].text
    assert kinds(run.report(d__sign=0.9, kl=2.0)) == []


def test_exploding_gradients_are_a_divergence() -> None:
    """A gradient norm that stays at many times its usual size is a divergence; a single burst is not."""
    run = Run(patience=2, gradient_growth=50)
    for _ in range(5):
        run.report(g__grad_norm=2.0)
    assert run.report(g__grad_norm=1e3) == (False, [])
    assert run.report(g__grad_norm=2.0) == (False, [])
    assert not run.report(g__grad_norm=1e3)[0]
    diverged, (alarm,) = run.report(g__grad_norm=math.nan)
    assert diverged
    assert "times its usual size 2" in alarm.text


def test_a_band_of_a_gradient_norm_counts_apart_from_its_growth() -> None:
    """A gradient that vanishes is outside its band and not grown: an alarm and no divergence; one that explodes diverges."""
    run = Run(Band("g.grad_norm", 1e-5, None, "it has vanished"), patience=3)
    for _ in range(5):
        run.report(g__grad_norm=2.0)
    found = [run.report(g__grad_norm=1e-7) for _ in range(4)]
    assert [kinds(one) for one in found] == [[], [], ["g.grad_norm"], []]
    assert not any(diverged for diverged, _ in found)
    assert run.watchdog.good()
    assert [run.report(g__grad_norm=1e3)[0] for _ in range(3)] == [False, False, True]


def test_non_finite_steps_warn_first_and_then_diverge() -> None:
    """Few are an alarm, more than the limit since the last good start a divergence, and a rollback starts a new count."""
    run = Run(max_nonfinite_steps=3)
    assert kinds(run.report(nonfinite=1)) == ["nonfinite_steps"]
    assert run.report(nonfinite=2) == (False, [])  # the excursion goes on
    assert run.report(nonfinite=1)[0]
    run.watchdog.rolled_back(run.nonfinite)
    assert run.watchdog.good()
    assert run.report() == (False, [])
    assert not run.report(nonfinite=3)[0]


def test_non_finite_steps_far_apart_are_no_divergence() -> None:
    """The limit is on twenty reports: of a long run that meets one bad step now and then, nothing is lost; of a burst it is."""
    run = Run(max_nonfinite_steps=3)
    assert not any(run.report(nonfinite=report % 7 == 0)[0] for report in range(100))
    assert not any(run.report()[0] for _ in range(20))
    assert [run.report(nonfinite=1)[0] for _ in range(4)] == [False, False, False, True]


def test_a_resumed_watchdog_counts_non_finite_steps_over_the_same_reports() -> None:
    """Whenever it is stopped, the same report is the one that goes too far; also from a state of an earlier version."""
    for stop_after in range(25):
        whole, parts = Run(max_nonfinite_steps=3), Run(max_nonfinite_steps=3)
        for report in range(26):
            if report == stop_after:
                resumed = Run(max_nonfinite_steps=3)
                resumed.watchdog.load(json.loads(json.dumps(parts.watchdog.dump())))
                resumed.images_seen, resumed.nonfinite = parts.images_seen, parts.nonfinite
                parts = resumed
            bad = int(report in {0, 18, 19, 25, 24})
            assert parts.report(nonfinite=bad) == whole.report(nonfinite=bad)
    earlier = Run(max_nonfinite_steps=3)
    earlier.watchdog.load(whole.watchdog.dump() | {"nonfinite_before": 0, "nonfinite": 3})
    earlier.nonfinite = 3
    assert earlier.report(nonfinite=1)[0]


def test_skipped_steps_raise_an_alarm() -> None:
    """More skipped steps than the allowed share are told with both numbers."""
    run = Run(max_skipped_share=0.1)
    assert kinds(run.report(skipped=1)) == []
    _, (alarm,) = run.report(skipped=2)
    assert alarm.text.startswith("2 of 10 steps were skipped")


def test_a_collapse_of_speed_and_a_lagging_rank_are_named() -> None:
    """Slow reports raise an alarm with usual and present speed; a rank that takes longest is named; neither taints."""
    run = Run(patience=2)
    for _ in range(5):
        run.report(speed=1000, seconds=(1.0, 1.1, 0.9))
    run.report(speed=200, seconds=(1.0, 5.0, 0.9))
    diverged, alarms = run.report(speed=200, seconds=(1.0, 5.0, 0.9))
    assert not diverged
    assert [alarm.kind for alarm in alarms] == ["images_per_second", "rank_lag"]
    assert "200 images/s, usual are 1000" in alarms[0].text
    assert "rank 1 takes 5.0 times" in alarms[1].text
    assert run.watchdog.good()


def test_of_two_ranks_the_slow_one_is_seen() -> None:
    """With two ranks the faster one is what the other is compared with."""
    run = Run(patience=1)
    assert kinds(run.report(seconds=(3.0, 1.0))) == ["rank_lag"]


def test_a_resumed_watchdog_goes_on_counting() -> None:
    """What it dumped, as JSON, makes another one raise the alarm at the same report."""
    run, resumed = Run(SIGN, patience=3), Run(SIGN, patience=3)
    run.report(d__sign=0.9, g__grad_norm=1.0)
    run.report(d__sign=0.9, g__grad_norm=1.0, nonfinite=1)
    resumed.watchdog.load(json.loads(json.dumps(run.watchdog.dump())))
    resumed.images_seen, resumed.nonfinite = run.images_seen, run.nonfinite
    assert resumed.watchdog.dump() == run.watchdog.dump()
    assert kinds(resumed.report(d__sign=0.9)) == kinds(run.report(d__sign=0.9)) == ["d.sign"]


def test_what_a_watchdog_dumped_does_not_change_with_it() -> None:
    """It is being stored while the next report comes, and a checkpoint has a checksum of it."""
    run = Run(SIGN, patience=3)
    run.report(d__sign=0.9, g__grad_norm=1.0)
    dumped = run.watchdog.dump()
    before = json.dumps(dumped)
    for _ in range(9):
        run.report(d__sign=0.9, g__grad_norm=1.0, speed=90.0, nonfinite=1)
    assert json.dumps(dumped) == before
    assert json.dumps(run.watchdog.dump()) != before


def test_bands_may_be_set_one_by_one() -> None:
    """``--set watchdog.bands.d.sign=[null,0.9]`` takes the dots of a metric's name for levels."""
    spec = WatchdogSpec.parse(
        {"bands": {"d": {"sign": [None, 0.9], "deep": {"er": [0, 1]}}, "kl": [1, 2]}}, origin="test"
    )
    assert spec.bands == {"d.sign": (None, 0.9), "d.deep.er": (0.0, 1.0), "kl": (1.0, 2.0)}
