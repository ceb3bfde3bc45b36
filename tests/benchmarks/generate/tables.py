"""Figures of all parts to rates, ratios and tables.

Two kinds of ratio: of samples per second of wall clock, and of CPU seconds per sample of all processes of a job. On a quiet
machine both say the same; on a shared one the second kind still holds.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.benchmarks.generate.clock import SMALL_SHARE
from tests.benchmarks.generate.limits import CORES, STAGES

Found = dict[str, dict[str, float]]
JOBS = ("generate", "ray data", "ray data, our engine", "script")


def summary(found: Found, samples: int) -> dict[str, float]:
    """Rates in samples/s of wall clock."""
    rates = {
        "engine forward": found["engine forward"]["rate"],
        "plain forward": found["plain forward"]["rate"],
        "roofline": CORES / roofline_cpu(found),
    }
    more = samples - samples // SMALL_SHARE
    for part in JOBS:
        times = found[part]
        rates[f"{part}, job"] = samples / times["job_seconds"]
        rates[f"{part}, no start-up"] = more / (times["job_seconds"] - times["small_seconds"])
    for part in [part for part in ("generate", "ray data") if f"{part}, cold" in found]:
        rates[f"{part}, whole process"] = samples / found[f"{part}, cold"]["process_seconds"]
    rates["generate, making_seconds"] = samples / found["generate"]["job_making_seconds"]
    return rates


def roofline_cpu(found: Found) -> float:
    """CPU seconds per sample of all stages, each alone on all cores."""
    return sum(found["stages"][stage] for stage in STAGES)


def cpu(found: Found, samples: int) -> dict[str, float]:
    """CPU seconds per sample, without start-up, of all processes of a job."""
    more = samples - samples // SMALL_SHARE
    jobs = {part: (found[part]["job_cpu_seconds"] - found[part]["small_cpu_seconds"]) / more for part in JOBS}
    forward = {part: found[part]["cpu_seconds_per_sample"] for part in ("engine forward", "plain forward")}
    return {**forward, "roofline": roofline_cpu(found), **jobs}


def ratios(rates: dict[str, float], seconds: dict[str, float]) -> dict[str, tuple[float, float]]:
    """How `generate` stands without start-up: (by wall clock, by CPU time)."""
    found = {}
    for other in ("roofline", "engine forward", "plain forward", *JOBS[1:]):
        by_wall = rates["generate, no start-up"] / rates.get(f"{other}, no start-up", rates.get(other, 0.0))
        found[f"generate / {other}"] = (by_wall, seconds[other] / seconds["generate"])
    return found


def show(name: str, samples: int, found: Found) -> None:
    """Print everything."""
    console = Console(width=140)
    rates, seconds = summary(found, samples), cpu(found, samples)
    table = Table("what", "samples/s", title=f"{name}: {samples:,} samples, {CORES} cores", title_justify="left")
    for label, value in rates.items():
        table.add_row(label, f"{value:,.0f}")
    console.print(table)
    table = Table("CPU time without start-up", "microseconds per sample")
    for label, value in {**{f"stage {stage}": found["stages"][stage] for stage in STAGES}, **seconds}.items():
        table.add_row(label, f"{value * 1e6:,.1f}")
    console.print(table)
    table = Table("part", "job in a warm cluster, seconds", f"1/{SMALL_SHARE} of it, seconds", "whole process, seconds")
    for part in JOBS:
        # Of one job alone: the other processes carry out three.
        whole = f"{found[cold]['process_seconds']:.1f}" if (cold := f"{part}, cold") in found else ""
        table.add_row(
            part, *(f"{value:.1f}" for value in (found[part]["job_seconds"], found[part]["small_seconds"])), whole
        )
    console.print(table)
    table = Table("ratio, without start-up", "by wall clock", "by CPU time")
    for label, pair in ratios(rates, seconds).items():
        table.add_row(label, *(f"{value:.2f}" for value in pair))
    console.print(table)
    console.print(f"bytes per image: {found['stages']['image_bytes']:,.0f}")
