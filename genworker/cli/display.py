"""What is shown while work is going on: one live line on a terminal, lines for machines in a log, see `genworker.cli.log`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from genworker.cli import log
from genworker.report.names import duration, headlines, number

if TYPE_CHECKING:
    from genworker.bulk.progress import Progress as JobProgress
    from genworker.training.hooks import Metrics

console = Console(stderr=True, highlight=False)
out = Console(highlight=False)  # for what a command is asked for

_SECONDS_BETWEEN_LINES = 5.0


class _TimeLeft(TimeRemainingColumn):
    """The time left by the work's own speed, where that is known: a bar takes the jump of a resume for speed."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return (
            super().render(task) if left is None or task.finished else Text(duration(left), style="progress.remaining")
        )


class Display:
    """A progress bar on a terminal, lines elsewhere (a job's log); ``clock`` gives seconds and decides when one is due."""

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        note: str = "",
        *,
        run_id: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._run_id = run_id
        self._live = console.is_terminal
        self._last_line = -math.inf
        self._ended = False
        self._report: Metrics = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            _TimeLeft(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(title, total=total, note=note, left=None)

    def update(self, done: int, note: str, left: float | None = None) -> None:
        """Show how far the work is, and the seconds ``left`` where the bar should not guess them."""
        if self._live:
            self._progress.update(self._task, completed=min(done, self._total), note=note, left=left)
        elif self._is_due() or done >= self._total:
            self._last_line = self._clock()
            counted = f"{self._title}: {min(done, self._total):,} of {self._total:,} {self._unit}"
            console.print(", ".join(filter(None, [counted, note])), soft_wrap=True)

    def event(self, text: str, style: str | None = "yellow") -> None:
        """Tell what happened: above the bar, unless it is for logs alone, see `genworker.training.hooks.News`."""
        if not self._live:
            kind, facts = log.of_news(text, self._report, self._total)
            self._write(kind, **facts)
        elif not getattr(text, "quiet", False):
            self._progress.console.print(f"{self._title}: {text}", style=style, soft_wrap=True)

    def on_count(self, done: int, total: int) -> None:
        """Show how many of a number of things are done."""
        if total != self._total:
            self._total = total
            self._progress.update(self._task, total=total)
        self.update(done, "")

    def on_metrics(self, metrics: Metrics) -> None:
        """Show a training report: the speed, the numbers that stand for the family, and what went wrong so far."""
        if not metrics:
            return
        self._report = metrics
        done = int(metrics["images_seen"])
        if self._live:
            values = [f"{short} {value}" for short, value in headlines(metrics).items()]
            speed = number(metrics.get("images_per_second"))
            self.update(done, "  ".join([f"{speed}/s", *values]), log.seconds_left(metrics, self._total))
        elif self._is_due() or done >= self._total:
            self._last_line = self._clock()
            self._write("progress", **log.of_report(metrics, self._total))

    def on_job(self, progress: JobProgress) -> None:
        """Show a bulk job's progress."""
        if not self._live:
            self._log(progress)
            return
        if progress.event:
            self.event(progress.event)
        if progress.num_shards:  # else the plan is still being made
            self.update(
                progress.samples_done,
                f"{progress.samples_per_second:,.0f}/s  {progress.num_done}/{progress.num_shards} shards  "
                f"{size(progress.bytes_done)}",
                progress.seconds_left,
            )

    def _log(self, progress: JobProgress) -> None:
        """One JSON object a line: every event, progress every few seconds, and the end once."""
        done = progress.num_done >= progress.num_shards > 0
        ends, self._ended = done and not self._ended, done
        if not (progress.event or ends or self._is_due()):
            return
        self._last_line = self._clock()
        self._write(log.kind_of(progress), **log.of_job(progress))

    def _write(self, event: str, **facts: Any) -> None:
        console.print(log.line(self._title, self._run_id, event, **facts), soft_wrap=True, markup=False)

    def _is_due(self) -> bool:
        return self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES

    @contextmanager
    def running(self) -> Iterator[Display]:
        """Show the display inside the block."""
        with self._progress:
            yield self


def tell_remarks(command: str, remarks: Iterable[str]) -> None:
    """Say on stderr what a source tells of its data, each remark in a line; see `genworker.sources.base.Source`."""
    for remark in remarks:
        click.echo(f"{command}: {remark}", err=True)


def size(num_bytes: float) -> str:
    """``num_bytes`` for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
