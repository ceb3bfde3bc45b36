"""The end of a job in numbers: what it made, where the time went, and what it cost; before that, what it will probably take.

In: the tally of a run, its progress, what was measured before it, a price. Out: a JSON-ready dict, and one sentence.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from genworker import bundle as bundles
from genworker.bulk.progress import Progress
from genworker.bulk.request import GenerateSpec
from genworker.bulk.tally import Tally
from genworker.bulk.trials import calibrated
from genworker.device import pick_device
from genworker.sampling.calibration import Calibration
from genworker.stores import open_store


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


def forecast(spec: GenerateSpec, calibration: Calibration, num_actors: int) -> dict[str, Any]:
    """What the job takes at the speed that was measured before its first shard: generating and encoding, nothing else."""
    generate, encode = 1 / calibration.samples_per_second, calibration.encode_seconds / spec.cpus_per_actor
    # A GPU generates while processors encode; processors alone do both.
    actor_seconds = spec.num_samples * (max(generate, encode) if spec.use_gpu else generate + encode)
    return {
        "after_shards": 0,
        "seconds": round(actor_seconds / num_actors, 1),
        "samples_per_second": round(spec.num_samples * num_actors / actor_seconds, 1),
        "cost": _rounded(cost_of(spec, actor_seconds)),
    }


def rehearse(spec: GenerateSpec) -> dict[str, Any]:
    """A `forecast` for one actor of this very machine, which is measured now; it writes nothing.

    Raises:
        BundleError: the generator cannot be built, or its images are not finite.
    """
    bundle = bundles.load(open_store(spec.bundle), with_scorer="score" in (spec.columns or ()))
    briefly = spec.model_copy(update={"calibrate": False})
    return forecast(spec, calibrated(briefly, bundle, pick_device(use_gpu=spec.use_gpu), 1), 1)


def sentence(made: dict[str, Any], num_samples: int) -> str:
    """An `estimate` or a `forecast` for people; the latter leaves out start, uploads and what else the machines do."""
    begun, cost = made["after_shards"] > 0, made["cost"]
    when = "" if begun else " before the first shard, of generating and encoding alone"
    about = "about" if begun else "at least"
    price = "" if cost is None else f", which cost {about} {cost:{',.2f' if cost >= 1 else '.4f'}}"
    return f"estimate{when}: {num_samples:,} samples in {about} {made['seconds']:,.0f} s{price}"


def summarise(
    spec: GenerateSpec,
    progress: Progress,
    tally: Tally,
    estimated: dict[str, Any] | None,
    foreseen: dict[str, Any] | None = None,
) -> dict[str, Any]:
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
        "forecast": foreseen,
        "estimate": estimated,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
