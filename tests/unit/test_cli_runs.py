"""genworker runs and genworker report: what they print and write."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console

from genworker import bundle
from genworker.cli import cli, display
from genworker.cli.display import Display
from genworker.report.names import duration, headlines, number
from genworker.stores import open_store
from genworker.training import record
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.servers import S3Server


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], terminal_width=200)


def make(url: str, family: str, images_seen: int, **values: float | None) -> None:
    store = open_store(url)
    record.claim(models.train_spec(family), store)
    lines = record.Lines(store, record.METRICS_KEY)
    lines.append({"images_seen": images_seen, "images_per_second": 120.0, "seconds": 2.0, **values})
    lines.flush()


@pytest.fixture(params=["folder", "s3"])
def runs(request: pytest.FixtureRequest, tmp_path: Path, point_at: Callable[[S3Server], None]) -> str:
    """The URL of a folder of runs, among other things."""
    url = str(tmp_path / "runs")
    if request.param == "s3":
        server = request.getfixturevalue("moto")
        point_at(server)
        url = f"s3://{server.new_bucket()}/runs"
    make(f"{url}/gan", "r3gan", 32, **{"discriminator.adversarial": 0.7, "discriminator.r1": 0.01, "rollbacks": 1})
    make(f"{url}/deeper/vae", "vae", 48, **{"elbo.negative_elbo": math.nan, "elbo.kl": 12.5})
    store = open_store(url)
    for images, value in ((16, 9.0), (32, 7.5)):
        evaluation = {"images_seen": images, "metrics": {"frechet": value}}
        store.put(f"gan/evaluations/images-{images:012d}.json", json.dumps(evaluation).encode())
    store.put("data/_manifest.json", b"{}")
    store.put("data/spec.json", b'{"not": "ours"}')
    return url


def test_runs_lists_what_is_below_a_url(runs: str) -> None:
    """One plain line per run where there is no terminal, and nothing that is no run."""
    outcome = run("runs", runs)
    assert outcome.exit_code == 0
    first, second = outcome.stdout.splitlines()
    assert first.startswith("deeper/vae  vae  running  48 of 48 images  120/s  ")
    assert first.endswith("  -ELBO nan KL 12.5  -")
    assert second.startswith("gan  r3gan  running  32 of 48 images  120/s  ")
    assert second.endswith("  D 0.7 R1 0.01 rollbacks 1  frechet 7.5 at 32")


def test_a_run_whose_spec_is_torn_is_listed_as_far_as_it_is_known(tmp_path: Path) -> None:
    """Its family and its length are not; it says so."""
    make(str(tmp_path), "vae", 48)
    (tmp_path / record.SPEC_KEY).write_text('{"a": ', encoding="utf-8")
    (line,) = run("runs", tmp_path).stdout.splitlines()
    assert "  ?  running, damaged: 1  48 images  120/s  " in line


def test_text_of_strangers_reaches_no_terminal_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a sequence that a terminal obeys, and not as a line of its own: neither a run's nor a bundle's."""
    unfit = "\x1b[2J\x07\nok  vae  finished\u202e"
    make(str(tmp_path / "run"), "vae", 48, **{unfit: 1.0})
    spec = {"family": {"name": unfit}, "training": {"images": 48}, "evaluation": {"metric": unfit}}
    (tmp_path / "run" / record.SPEC_KEY).write_text(json.dumps(spec), encoding="utf-8")
    evaluation = json.dumps({"images_seen": 48, "metrics": {unfit: 1.0}})
    open_store(str(tmp_path / "run")).put(record.evaluation_key(48), evaluation.encode())
    models.bundle_of(lineage=bundle.Lineage(source=unfit)).save(open_store(str(tmp_path / "bundle")))
    damaged = json.dumps({"version": 1, "family": {"name": "vae", unfit: 1}})
    open_store(str(tmp_path / "damaged")).put(bundle.BUNDLE_KEY, damaged.encode())
    commands = [["info", "run"], ["info", "bundle"], ["info", "damaged"], ["runs", ""]]
    outcomes = [CliRunner().invoke(cli, [name, str(tmp_path / place)], color=True) for name, place in commands]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 1, 0]
    assert len(outcomes[-1].stdout.splitlines()) == 1
    terminal = Console(force_terminal=True, width=400, color_system=None)
    monkeypatch.setattr(display, "out", terminal)
    with terminal.capture() as captured:
        assert run("runs", tmp_path).exit_code == 0
    for text in (*(outcome.output for outcome in outcomes), captured.get()):
        assert "\\x1b[2J\\x07" in text
        assert all(char.isprintable() or char == "\n" for char in text)


def test_how_long_a_run_will_be_is_said_only_where_it_is_known(tmp_path: Path) -> None:
    """Not as 0 images."""
    make(str(tmp_path), "vae", 48)
    (tmp_path / record.SPEC_KEY).write_text("{", encoding="utf-8")
    assert "planned images  unknown" in run("info", tmp_path).stdout
    (facts,) = json.loads(run("runs", tmp_path, "--json").stdout)
    assert facts["planned_images"] is None
    assert run("report", tmp_path, "--out", tmp_path / "page.html").stdout.endswith(", running, 48 images seen\n")
    assert "48 images seen" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_as_json_is_strict_json(runs: str) -> None:
    """Numbers that are not finite are null."""
    first, second = json.loads(run("runs", runs, "--json").stdout, parse_constant=pytest.fail)
    assert first["last_report"]["elbo.negative_elbo"] is None
    assert (second["state"], second["images_seen"], second["planned_images"]) == ("running", 32, 48)
    assert second["best_evaluation"] == {"metric": "frechet", "images_seen": 32, "metrics": {"frechet": 7.5}}


def test_runs_is_a_table_on_a_terminal(runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With headings and one row per run."""
    terminal = Console(force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(display, "out", terminal)
    with terminal.capture() as captured:
        assert run("runs", runs).exit_code == 0
    heading, *rows = [line for line in captured.get().splitlines() if line.strip()]
    assert heading.split()[:3] == ["run", "family", "state"]
    assert [row.split()[0] for row in rows] == ["deeper/vae", "gan"]


def test_runs_says_when_there_are_none(tmp_path: Path) -> None:
    """Nothing on stdout, a word on stderr."""
    outcome = run("runs", tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert "no training runs here" in outcome.stderr


def test_report_writes_a_page(runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To --out, or to a file called like the run."""
    monkeypatch.chdir(tmp_path)
    outcome = run("report", f"{runs}/gan")
    assert outcome.exit_code == 0
    assert outcome.stdout == "gan.html: gan, running, 32 images seen\n"
    page = (tmp_path / "gan.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f"{runs}/gan" in page
    assert run("report", f"{runs}/gan", "--out", "other.html").exit_code == 0
    assert (tmp_path / "other.html").exists()


def test_report_of_nothing_and_to_nowhere_are_refused(runs: str, tmp_path: Path) -> None:
    """One message each, exit code 2."""
    outcome = run("report", runs)
    assert outcome.exit_code == 2
    assert "there is no training run here" in outcome.stderr
    outcome = run("report", f"{runs}/gan", "--out", tmp_path / "no" / "page.html")
    assert outcome.exit_code == 2
    assert "name a file in a folder that exists" in outcome.stderr


def test_the_time_left_is_that_of_the_speed_and_not_of_the_jump_at_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on from half of its images has as long to go as its speed says."""
    reports = [{"images_seen": 50_000 + 100 * number, "images_per_second": 10.0} for number in range(3)]
    terminal = Console(force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(display, "console", terminal)
    shown = Display("train", 100_000, "images")
    with terminal.capture() as captured, shown.running():
        for report in reports:
            shown.on_metrics(report)
    assert "50% 1 h 23 min 10/s" in captured.get()
    shown.on_metrics({"images_seen": 100_000, "images_per_second": 0.0})


def test_numbers_and_durations_for_people() -> None:
    """Three digits, and the largest unit that fits."""
    assert [number(x) for x in (0, 0.00012, 0.5, 12.345, 1234.5, 5e12, math.inf, None, 7, "-")] == [
        "0", "1.20e-04", "0.5", "12.3", "1,234", "5.00e+12", "nan", "nan", "7", "-",
    ]  # fmt: skip
    assert [duration(x) for x in (5, 200, 3600, 12_000, 190_000)] == ["5 s", "3 min", "1 h", "3 h 20 min", "2 d 4 h"]
    assert list(headlines({"elbo.kl": 1.0, "nonfinite_steps": 0, "rollbacks": 1})) == ["KL", "rollbacks"]
