"""Which of a run's many numbers stand for it, and what they are called where there is little room."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Metric -> short name, in the order in which they are shown; a run shows those that its family reports.
HEADLINES: dict[str, str] = {
    "discriminator.adversarial": "D",
    "generator.loss": "G",
    "discriminator.real_sign": "r_t",
    "discriminator.r1": "R1",
    "discriminator.r2": "R2",
    "elbo.negative_elbo": "-ELBO",
    "elbo.kl": "KL",
    "active_units": "active",
}
# What becomes of a run's health, shown as soon as it is not zero.
COUNTS: dict[str, str] = {"nonfinite_steps": "non-finite", "skipped_steps": "skipped", "rollbacks": "rollbacks"}


def headlines(report: Mapping[str, Any]) -> dict[str, str]:
    """Short names and values, as text, of what stands for a report; values that are not finite are ``nan``."""
    shown = {short: number(report[name]) for name, short in HEADLINES.items() if name in report}
    counts = {short: f"{report[name]:,.0f}" for name, short in COUNTS.items() if report.get(name)}
    return shown | counts


def headline_values(report: Mapping[str, Any]) -> dict[str, float | None]:
    """What stands for a report, and the counts of its health, by full names; None for what is not finite."""
    return {name: finite(report[name]) for name in (*HEADLINES, *COUNTS) if name in report}


def finite(value: float | None) -> float | None:
    """A number for JSON, with six significant digits; None for None and for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def number(value: Any) -> str:
    """A number for people, with three significant digits; ``nan`` for None and for what is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "nan"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
