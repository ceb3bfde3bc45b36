"""How curves look: axes, lines, legends, and SVG out of matplotlib, without a display.

In: arrays. Out: drawings. Long series are thinned to their means, with the range between smallest and largest value shaded;
values that are not finite are marked, and what lies far outside the usual range is said, not hidden.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from genworker.printable import in_a_line
from genworker.report.names import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[np.float64]

_WIDTH, _HEIGHT = 4.7, 2.45  # inches of 72 points; a page scales them
MAX_POINTS = 400
_LEGEND_COLUMNS = 3
_NARROW = 1e-9  # relative to its ends, a narrower axis has no ticks that can be told apart
COLOURS = ("#2f6f9f", "#c8553d", "#4f8a5b", "#8a5fa8", "#b8892b", "#5b6670")
INK, MUTED, _LINE, ALARM, ROLLBACK = "#27272a", "#71717a", "#e4e4e7", "#d97706", "#dc2626"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "genworker",  # equal curves give equal bytes
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#f1f1f3",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
}


def new_axes(last_image: int) -> tuple[Figure, Axes]:
    """A figure and its axes, images seen from 0 to ``last_image`` along the horizontal one."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    # Fixed margins: an automatic layout takes as long as the drawing itself, and panels side by side would not line up.
    figure.subplots_adjust(left=0.125, right=0.955, bottom=0.12, top=0.87)
    axes = figure.add_subplot()
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(0, max(last_image, 1))
    return figure, axes


def label_of(name: str) -> str:
    """What stands for ``name`` in a legend."""
    shown = in_a_line(name)
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves out what begins with an underscore


def draw_line(axes: Axes, images: Array, values: Array, colour: str, label: str) -> None:
    """Draw ``values`` [n] at ``images`` [n]."""
    if len(images) <= MAX_POINTS:
        # A single point between gaps would be invisible as a line, and half of one at the edge.
        few = np.isfinite(values).sum() < 3
        axes.plot(
            images, values, color=colour, label=label_of(label), marker="o" if few else None, ms=3, clip_on=not few
        )
    else:
        parts = np.array_split(np.arange(len(images)), MAX_POINTS)
        finite = [values[part][np.isfinite(values[part])] for part in parts]
        at = np.array([images[part].mean() for part in parts])
        mean, low, high = (
            np.array([float(reduce(part)) if part.size else math.nan for part in finite])
            for reduce in (np.mean, np.min, np.max)
        )
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, mean, color=colour, label=label_of(label))
    lost = images[~np.isfinite(values)]
    if lost.size:
        bottom = axes.get_xaxis_transform()
        axes.plot(lost, np.full(lost.size, 0.02), "x", color=ROLLBACK, ms=4, transform=bottom, clip_on=False)


def set_scale(axes: Axes, values: Array, *, log: bool) -> None:
    """Fit the vertical axis to finite ``values``; few that lie far outside are cut off, and how far they go is said.

    With ``log`` the axis is logarithmic where all values are above 0.
    """
    if log and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    if (values == np.round(values)).all():  # counts
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if values.min() == values.max():
        room = max(1.0, _NARROW * float(abs(values.max())))
        axes.set_ylim(values.min() - room, values.max() + room)
        return
    low, high = np.percentile(values, [4, 96])
    spread = high - low
    if spread > _NARROW * max(abs(low), abs(high)) and values.max() - values.min() > 6 * spread:
        axes.set_ylim(max(values.min(), low - spread), min(values.max(), high + spread))
        cut = [
            number(end)
            for end, out in ((values.min(), values.min() < low - spread), (values.max(), values.max() > high + spread))
            if out
        ]
        if cut:
            axes.text(
                1,
                1.01,
                f"some values go to {' and '.join(cut)}",
                transform=axes.transAxes,
                ha="right",
                color=MUTED,
                size=7,
            )
    else:
        axes.margins(y=0.08)


def add_legend(axes: Axes, count: int) -> None:
    """Name the ``count`` lines above the drawing."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    if count > _LEGEND_COLUMNS:
        figure.subplots_adjust(top=0.79)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.1, 1.0),
        ncols=min(count, _LEGEND_COLUMNS),
        borderaxespad=0.2,
        handlelength=1.1,
        columnspacing=1.0,
        handletextpad=0.5,
        labelspacing=0.2,
    )


def to_svg(figure: Figure) -> bytes:
    """An SVG document without date and links."""
    data = io.BytesIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # here, where text is only measured; a browser has more fonts
        figure.savefig(data, format="svg", metadata=nothing, transparent=True)
    return data.getvalue()


def _count(value: float, _position: object = None) -> str:
    """1500000 as 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
