"""What a log and a terminal show of a bulk job, by a clock that the test moves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from genworker.bulk.progress import Event, Progress, Reporter
from genworker.cli import display
from genworker.cli.display import Display

STARTING = Progress(0, 0, 0, 0, 0, 0.0)
PROGRESS = Progress(8, 2, 20, 99, 20, 40.0, plan_id="p", num_samples=80)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log since the last call."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_log_has_a_line_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Two ticks a second for a minute are a line at the start and one every five seconds, and all say how far the job is."""
    now = 100.0
    shown = Display("generate", 80, "samples", clock=lambda: now)
    for _ in range(120):
        shown.on_job(PROGRESS)
        now += 0.5
    told = lines(capsys)
    assert len(told) == 12
    assert {(line["event"], line["shards_done"], line["num_shards"]) for line in told} == {("progress", 2, 8)}


def test_events_and_the_end_are_told_at_once_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the clock says; ticks after the end, as while the manifest is put, add nothing."""
    shown = Display("generate", 80, "samples", clock=lambda: 100.0)
    ended = replace(PROGRESS, num_done=8)
    for progress in (STARTING, PROGRESS, replace(PROGRESS, event="an actor died"), PROGRESS, ended, ended, ended):
        shown.on_job(progress)
    told = [(line["event"], line["shards_done"], line.get("message")) for line in lines(capsys)]
    assert told == [("starting", 0, None), ("warning", 2, "an actor died"), ("progress", 8, None)]


def test_lines_carry_run_shard_and_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    """A failed attempt can be found by fields, not only by its text; what concerns no shard has none."""
    shown = Display("generate", 80, "samples", run_id="nightly-7", clock=lambda: 100.0)
    shown.on_job(replace(PROGRESS, event=Event("data/a: attempt 1 of 3 failed: no", "data/a", 0)))
    shown.on_job(replace(PROGRESS, event="an actor died"))
    failed, died = lines(capsys)
    assert (failed["run_id"], failed["shard"], failed["attempt"]) == ("nightly-7", "data/a", 0)
    assert failed["message"] == "data/a: attempt 1 of 3 failed: no"
    assert died["run_id"] == "nightly-7"
    assert not {"shard", "attempt"} & set(died)


def test_a_terminal_shows_ticks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live line moves on with every tick, and is left as it is until there is a plan."""
    terminal = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=terminal, force_terminal=True, width=120))
    shown = Display("generate", 80, "samples", note="starting Ray")
    with shown.running():
        shown.on_job(STARTING)
    assert "starting Ray" in terminal.getvalue()
    assert "0/s" not in terminal.getvalue()
    with shown.running():
        shown.on_job(replace(PROGRESS, making_seconds=10.0))
    assert "2/s  2/8 shards" in terminal.getvalue()


def test_a_tick_tells_progress() -> None:
    """Without a receipt or an event, with the seconds that went by."""
    told: list[Progress] = []
    reporter = Reporter(told.append)
    reporter.tick()
    reporter.tick()
    assert [(progress.num_done, progress.event) for progress in told] == [(0, "")] * 2
    assert 0 < told[0].making_seconds < told[1].making_seconds
