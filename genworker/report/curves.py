"""Curves of a run as SVG documents, drawn by matplotlib.

In: a `Run`. Out: `Curve`s: one per panel that the run has something for, and one per number of its evaluations. Resumes,
alarms and rollbacks are vertical lines, and what a rollback took back is drawn dashed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from genworker.report.names import number
from genworker.report.panels import Panel, panels_for
from genworker.report.plotting import (
    ALARM,
    COLOURS,
    MAX_POINTS,
    MUTED,
    ROLLBACK,
    STYLE,
    Array,
    add_legend,
    draw_line,
    label_of,
    new_axes,
    set_scale,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from genworker.report.run import Line, Run

_SHARES = {  # fixed, so that two runs can be compared
    "forward_share": "#2f6f9f",
    "backward_share": "#6aa0c8",
    "all_reduce_share": "#8a5fa8",
    "optimizer_share": "#4f8a5b",
    "data_wait_share": "#c8553d",
    "checkpoint_share": "#b8892b",
    "report_share": "#5b6670",
}


@dataclass(frozen=True)
class Curve:
    """One drawing: ``svg`` is a whole SVG document, ``text`` says in words what is on it."""

    section: str
    title: str
    note: str
    svg: bytes
    text: str


def draw(run: Run) -> list[Curve]:
    """All curves of a run; none when nothing was reported yet."""
    names = dict.fromkeys(name for report in run.reports for name in report)
    with mpl.rc_context(STYLE):
        curves = [
            Curve(panel.section, panel.title, panel.note, svg, _in_words(run.last_report, panel.metrics))
            for panel in panels_for(names)
            if (svg := _latents(run, panel) if panel.kind == "latents" else _lines(run, panel)) is not None
        ]
        return curves + list(_evaluations(run))


def _lines(run: Run, panel: Panel) -> bytes | None:
    series = {name: _series(run.reports, name) for name in panel.metrics}
    everything = np.concatenate([values for _, values in series.values()])
    if not np.isfinite(everything).any() or (panel.counts and not np.nansum(everything)):
        return None
    figure, axes = new_axes(run.images_seen)
    if panel.kind == "shares":
        _stack(axes, run.reports, panel.metrics)
    else:
        for index, (name, (images, values)) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            draw_line(axes, images, values, colour, name)
            for reports in run.taken_back:
                axes.plot(*_series(reports, name), color=colour, alpha=0.7, linewidth=1, linestyle=(0, (2, 1.5)))
        if panel.limits is None:
            set_scale(axes, everything[np.isfinite(everything)], log=panel.log)
        else:
            axes.set_ylim(*panel.limits)
    _marks(axes, run)
    if len(series) > 1:
        add_legend(axes, len(series))
    return to_svg(figure)


def _stack(axes: Axes, reports: Sequence[Line], names: Sequence[str]) -> None:
    """Shares of the time of each report, 0 where a report does not have one."""
    images = np.array([report["images_seen"] for report in reports], np.float64)
    table = np.array([[_number_of(report, name) or 0.0 for report in reports] for name in names], np.float64)
    parts = np.array_split(np.arange(len(images)), min(len(images), MAX_POINTS))
    at = np.array([images[part].mean() for part in parts])
    rows = [np.array([values[part].mean() for part in parts]) for values in table]
    colours = [_SHARES.get(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(names)]
    labels = [label_of(name.removesuffix("_share")) for name in names]
    if len(at) == 1:  # an area needs two sides
        at, rows = np.array([0.0, at[0]]), [np.repeat(row, 2) for row in rows]
    axes.stackplot(at, rows, colors=colours, labels=labels, linewidth=0, alpha=0.9)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _latents(run: Run, panel: Panel) -> bytes | None:
    """One row per latent, one column per report, sorted so that the latents that are used most stand at the top."""
    (name, *_) = panel.metrics
    rows = [(report["images_seen"], report[name]) for report in run.reports if isinstance(report.get(name), list)]
    lengths = {len(values) for _, values in rows}
    if len(lengths) != 1 or lengths == {0}:
        return None
    step = -(-len(rows) // MAX_POINTS)
    images = np.array([images for images, _ in rows[::step]], np.float64)
    table = np.array([[math.nan if v is None else v for v in values] for _, values in rows[::step]], np.float64).T
    order = np.argsort(-np.nan_to_num(table[:, -1]), kind="stable")
    figure, axes = new_axes(run.images_seen)
    figure.subplots_adjust(right=0.98)
    axes.grid(visible=False)
    edges = np.concatenate([[2 * images[0] - images[1] if len(images) > 1 else 0.0], images])
    mesh = axes.pcolormesh(edges, np.arange(len(order) + 1), table[order], cmap="viridis", rasterized=True)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylabel("latents, sorted", color=MUTED)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.06, format=FuncFormatter(lambda value, _: number(value)))
    bar.outline.set_visible(False)
    return to_svg(figure)


def _evaluations(run: Run) -> Iterator[Curve]:
    """One curve per number, with the same number of real images as a dashed line."""
    names = list(dict.fromkeys(name for line in run.evaluations for name in line["metrics"]))
    names.sort(key=lambda name: name != run.metric)
    best = run.best_evaluation
    for name in names:
        images, values = _series(
            [line["metrics"] | {"images_seen": line["images_seen"]} for line in run.evaluations], name
        )
        if not np.isfinite(values).any():
            continue
        figure, axes = new_axes(run.images_seen)
        axes.plot(images, values, color=COLOURS[0], marker="o", ms=3.5, label=label_of(name), clip_on=False)
        floors = [value for line in run.evaluations if (value := (line.get("floor") or {}).get(name)) is not None]
        if floors:
            axes.axhline(floors[-1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1, label="real images")
        if best is not None and name == run.metric:
            axes.plot(best["images_seen"], best["metrics"][name], "o", color=COLOURS[2], ms=8, mfc="none", label="best")
        add_legend(axes, 1 + bool(floors) + (name == run.metric))
        axes.margins(y=0.15)
        text = f"{name}: {number(values[-1])} at image {images[-1]:,.0f}"
        yield Curve("Evaluation", name, "", to_svg(figure), text)


def _series(reports: Sequence[Line], name: str) -> tuple[Array, Array]:
    """Images seen and values; NaN where a value is not finite, and nothing where a report does not have it."""
    rows = [(report["images_seen"], report[name]) for report in reports if name in report]
    values = [value if isinstance(value, int | float) else math.nan for _, value in rows]
    return np.array([images for images, _ in rows], np.float64), np.array(values, np.float64)


def _number_of(report: Line, name: str) -> float | None:
    """Its value, None where that is none or one per latent."""
    value = report.get(name)
    return value if isinstance(value, int | float) else None


def _marks(axes: Axes, run: Run) -> None:
    """Vertical lines: resumes, alarms, rollbacks."""
    for start in run.starts[1:]:
        axes.axvline(start.get("images_seen", 0), color="#a1a1aa", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
    for alarm in run.alarms:
        serious = alarm.get("kind") in {"rollback", "gave_up"}
        colour = ROLLBACK if serious else ALARM
        axes.axvline(alarm.get("images_seen", 0), color=colour, linewidth=0.9, alpha=0.8, zorder=0)


def _in_words(report: Line, names: Sequence[str]) -> str:
    words = [
        f"{name} {number(report[name])}"
        for name in names
        if isinstance(report.get(name), int | float | None) and name in report
    ]
    return "last: " + ", ".join(words) if words else "one number per latent"
