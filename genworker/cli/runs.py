"""genworker runs, report: commands that look at training runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genworker.errors import UsageError
from genworker.printable import in_a_line, printable

if TYPE_CHECKING:
    from genworker.report.run import Run

_STATE_STYLES = {"running": "blue", "stopped": "yellow", "diverged": "red", "finished": "green"}


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(url: str, as_json: bool) -> None:
    """List the training runs below URL: how far they are, how they do, and which evaluated best."""
    from genworker.cli.display import out
    from genworker.report.reader import find_runs
    from genworker.stores import open_store

    found = find_runs(open_store(url))
    if as_json:
        click.echo(json.dumps([_facts(run) for run in found], indent=2))
        return
    if not found:
        click.echo(printable(f"{url}: no training runs here"), err=True)
        return
    if out.is_terminal:
        out.print(_table(found, url))
        return
    for run in found:
        click.echo("  ".join(_cells(run, url)))


@click.command()
@click.argument("run")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write. Default: <name of the run>.html"
)
def report(run: str, out: Path | None) -> None:
    """Write all about the training run at URL RUN as one HTML page that needs no network.

    Curves, samples over time, alarms, evaluations, spec, lineage and environment. It works while the run goes on, too.
    """
    from genworker.report.page import render
    from genworker.report.reader import read_run
    from genworker.stores import open_store

    store = open_store(run)
    read = read_run(store)
    out = out or Path(f"{read.name}.html")
    try:
        out.write_text(render(read, store), encoding="utf-8")
    except OSError as err:
        raise UsageError(
            f"--out {out}: cannot be written: {err.strerror or err}; name a file in a folder that exists"
        ) from err
    click.echo(printable(f"{out}: {read.name}, {read.state}, {read.images_seen:,} images seen"))


def _name(run: Run, url: str) -> str:
    """The run's place below what was asked for."""
    return run.url.removeprefix(url.rstrip("/")).strip("/") if run.url.startswith(url.rstrip("/")) else run.name


def _cells(run: Run, url: str) -> list[str]:
    """What a line says of a run."""
    from genworker.report.names import duration, headlines, number

    speed = run.last_report.get("images_per_second")
    best = run.best_evaluation
    cells = [
        _name(run, url) or run.name,
        run.family,
        run.state + (f", damaged: {len(run.damaged)}" if run.damaged else ""),
        f"{run.images_seen:,}" + (f" of {run.planned_images:,}" if run.planned_images else "") + " images",
        "-" if speed is None else f"{number(speed)}/s",
        f"{duration(run.quiet_seconds)} ago",
        " ".join(f"{short} {value}" for short, value in headlines(run.last_report).items()) or "-",
    ]
    best_cell = "-"
    if best is not None:
        best_cell = f"{run.metric} {number(best['metrics'][run.metric])} at {best['images_seen']:,}"
    return [in_a_line(cell) for cell in (*cells, best_cell)]


def _table(found: list[Run], url: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "family", "state", "progress", "speed", "last written", "last report", "best evaluation"):
        table.add_column(heading, overflow="fold")
    for run in found:
        cells = [Text(cell) for cell in _cells(run, url)]
        cells[2].stylize(_STATE_STYLES[run.state])
        table.add_row(*cells)
    return table


def _facts(run: Run) -> dict[str, Any]:
    """A run as JSON."""
    from genworker.training.record import finite

    best = run.best_evaluation
    return {
        "url": run.url,
        "family": run.family,
        "state": run.state,
        "images_seen": run.images_seen,
        "planned_images": run.planned_images or None,
        "seconds_since_written": round(run.quiet_seconds, 1),
        "last_report": finite(run.last_report),
        "alarms": len(run.alarms),
        "best_evaluation": None if best is None else {"metric": run.metric, **finite(best)},
        "damaged": list(run.damaged),
    }
