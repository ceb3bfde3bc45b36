"""What a log and a terminal show of a bulk job and of training, by a clock that the test moves."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from genworker.bulk.progress import Event, Price, Progress, Reporter
from genworker.cli import display
from genworker.cli.display import Display
from genworker.training.board import Board
from genworker.training.hooks import News

STARTING = Progress(0, 0, 0, 0, 0, 0.0)
REPORT: dict[str, Any] = {
    "images_seen": 50,
    "images_per_second": 12.3456789,
    "discriminator.adversarial": 0.61,
    "discriminator.r1": float("nan"),
    "elbo.kl_per_latent": [1.0],
    "data_wait_share": 0.1,
    "skipped_steps": 2,
    "rollbacks": 0,
}
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
    shown.on_job(replace(PROGRESS, event=Price("estimate: 80 samples in about 9 s, which cost about 1.00")))
    failed, died, price = lines(capsys)
    assert (failed["run_id"], failed["shard"], failed["attempt"]) == ("nightly-7", "data/a", 0)
    assert failed["message"] == "data/a: attempt 1 of 3 failed: no"
    assert died["run_id"] == "nightly-7"
    assert not {"shard", "attempt"} & set(died)
    # A price is no warning.
    assert [line["event"] for line in (failed, died, price)] == ["warning", "warning", "cost"]


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


def test_training_logs_a_line_every_five_seconds_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """By which run, how far and how fast it is, the seconds left, and the numbers that stand for the family, by full names."""
    now = 100.0
    shown = Display("train r3gan", 100, "images", run_id="r", clock=lambda: now)
    shown.on_metrics({})
    for images_seen in (50, 51, 52, 100):
        shown.on_metrics(REPORT | {"images_seen": images_seen})
        now += 2.5
    first, third, last = lines(capsys)
    assert {key: first[key] for key in first if key != "time"} == {
        "job": "train r3gan",
        "run_id": "r",
        "event": "progress",
        "level": "info",
        "images_seen": 50,
        "num_images": 100,
        "images_per_second": 12.3457,
        "eta_seconds": 4.1,
        "metrics": {"discriminator.adversarial": 0.61, "discriminator.r1": None, "skipped_steps": 2, "rollbacks": 0},
    }
    assert [(line["images_seen"], line["eta_seconds"]) for line in (third, last)] == [(52, 3.9), (100, 0.0)]


def test_what_happens_in_training_is_logged_at_once_by_kind_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    """With where it happened, else with where the run is; a plain line is a warning. It survives the way from a worker."""
    shown = Display("train", 100, "images", run_id="r", clock=lambda: 100.0)
    shown.on_metrics(REPORT)
    alarm = News("alarm at image 40: odd", "alarm", images_seen=40, alarm="elbo.kl")
    stored = News("the newest checkpoint is c", "checkpoint", "info", quiet=True, images_seen=48)
    for news in (alarm, stored, "callback mlflow failed"):
        shown.event(pickle.loads(pickle.dumps(news)))  # noqa: S301
    _, *told = lines(capsys)
    assert [(line["event"], line["level"], line["images_seen"], line["message"]) for line in told] == [
        ("alarm", "warning", 40, "alarm at image 40: odd"),
        ("checkpoint", "info", 48, "the newest checkpoint is c"),
        ("warning", "warning", 50, "callback mlflow failed"),
    ]
    assert told[0]["alarm"] == "elbo.kl"
    assert {(line["run_id"], line["num_images"]) for line in told} == {("r", 100)}


def test_a_terminal_has_no_line_for_what_is_for_logs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training's live line shows what stands for the family; alarms and evaluations come above it, checkpoints do not."""
    terminal = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=terminal, force_terminal=True, width=120, color_system=None))
    shown = Display("train", 100, "images")
    with shown.running():
        shown.on_metrics(REPORT)
        shown.event(News("evaluation at image 50: frechet 3.2", "evaluation", "info", images_seen=50))
        shown.event(News("the newest checkpoint is c", "checkpoint", "info", quiet=True))
    assert "12.3/s  D 0.61  R1 nan  skipped 2" in terminal.getvalue()
    assert "train: evaluation at image 50: frechet 3.2" in terminal.getvalue()
    assert "checkpoint" not in terminal.getvalue()


def test_a_board_tells_how_workers_start() -> None:
    """The first start is news for logs, also where it resumes an earlier try; a later one is a warning for everybody."""
    told = []
    for images_seen in (0, 64):
        board = Board()
        board.start(2, images_seen)
        board.start(1, 128)
        told += [(news.kind, news.level, news.quiet, news.facts, str(news)) for news in board.read().events]
    again = (
        "resumed",
        "warning",
        False,
        {"images_seen": 128, "workers": 1},
        "1 worker goes on from image 128, start 2",
    )
    assert told == [
        ("started", "info", True, {"images_seen": 0, "workers": 2}, "2 workers go to work, start 1"),
        again,
        ("resumed", "info", True, {"images_seen": 64, "workers": 2}, "2 workers go on from image 64, start 1"),
        again,
    ]


def test_a_tick_tells_progress() -> None:
    """Without a receipt or an event, with the seconds that went by."""
    told: list[Progress] = []
    reporter = Reporter(told.append)
    reporter.tick()
    reporter.tick()
    assert [(progress.num_done, progress.event) for progress in told] == [(0, "")] * 2
    assert 0 < told[0].making_seconds < told[1].making_seconds


def test_a_count_is_a_line_without_loose_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is nothing to say beside it, no comma waits for more."""
    shown = Display("verify", 0, "shards")
    shown.on_count(4, 4)
    shown.update(4, "12/s")
    assert capsys.readouterr().err.splitlines() == ["verify: 4 of 4 shards", "verify: 4 of 4 shards, 12/s"]
