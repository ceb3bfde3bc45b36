"""The end of a job in numbers: what it made, where the time went, and what it cost; before that, what it will probably take.

In: the tally of a run, its progress, a price. Out: a JSON-ready dict, and one sentence.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from genworker.bulk.progress import Progress
from genworker.bulk.request import GenerateSpec
from genworker.bulk.tally import Tally


def units_per_actor(spec: GenerateSpec) -> float:
    """GPUs of an actor, or its CPUs where it has none: what the price is of."""
    return spec.gpus_per_actor if spec.use_gpu else float(spec.cpus_per_actor)


def cost_of(spec: GenerateSpec, actor_seconds: float) -> float | None:
    """What so much time of actors costs; None without a price."""
    if spec.price_per_hour is None:
        return None
    return actor_seconds / 3600 * units_per_actor(spec) * spec.price_per_hour


def estimate(spec: GenerateSpec, progress: Progress, num_actors: int) -> dict[str, Any] | None:
    """What the rest of the job takes at the rate of its first shards; None while nothing is known."""
    left = progress.seconds_left
    if left is None:
        return None
    seconds = progress.making_seconds + left
    return {
        "after_shards": progress.num_done,
        "seconds": round(seconds, 1),
        "samples_per_second": round(progress.samples_per_second, 1),
        "cost": _rounded(cost_of(spec, seconds * num_actors)),
    }


def sentence(made: dict[str, Any], num_samples: int) -> str:
    """An `estimate` for people."""
    cost = "" if made["cost"] is None else f", which cost about {made['cost']:.2f}"
    return f"estimate: {num_samples:,} samples in about {made['seconds']:,.0f} s{cost}"


def summarise(spec: GenerateSpec, progress: Progress, tally: Tally, estimated: dict[str, Any] | None) -> dict[str, Any]:
    """All of a run in numbers; `README.md` explains each.

    ``stages`` are seconds of all actors together. ``utilisation`` is their share of the time that actors were ready, times
    the tasks that one makes at once, so that a stage can pass 1 and waiting for a turn shows as ``waiting``.
    """
    seconds, samples = progress.making_seconds, progress.samples_made
    cost = cost_of(spec, tally.actor_seconds)
    stages = {stage: round(value, 3) for stage, value in asdict(tally.stages).items()}
    return {
        "url": spec.out,
        "plan_id": progress.plan_id,
        "samples": progress.samples_done,
        "shards": progress.num_done,
        "bytes": progress.bytes_done,
        "made": {
            "samples": samples,
            "shards": int(tally["shards_committed"]),
            "bytes": int(tally["bytes"]),
            "seconds": round(seconds, 3),
            "samples_per_second": round(samples / seconds, 1) if seconds > 0 else 0.0,
            "bytes_per_second": round(tally["bytes"] / seconds) if seconds > 0 else 0,
        },
        "attempts": {
            "failed": int(tally["shards_failed"]),
            "duplicate": int(tally["shards_duplicate"]),
            "speculative": int(tally["shards_speculative"]),
        },
        "actors": {
            "peak": tally.peak_actors,
            "lost": int(tally["actors_lost"]),
            "seconds": round(tally.actor_seconds, 3),
        },
        "stages": stages,
        "utilisation": {
            stage: round(value / tally.actor_seconds, 4) if tally.actor_seconds > 0 else 0.0
            for stage, value in stages.items()
        },
        "cost": {
            "price_per_hour": spec.price_per_hour,
            "total": _rounded(cost),
            "per_million_samples": _rounded(cost / samples * 1e6) if cost is not None and samples else None,
        },
        "estimate": estimated,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
