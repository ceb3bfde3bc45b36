"""What a log holds of bulk jobs and of training: JSON objects, one a line, which say the same things by the same names.

In: how far the work is, and what happened. Out: lines. It prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from genworker.bulk.progress import Event, Price
from genworker.report.names import finite, headline_values

if TYPE_CHECKING:
    from genworker.bulk.progress import Progress
    from genworker.training.hooks import Metrics


def line(job: str, run_id: str, event: str, **facts: Any) -> str:
    """A line: when, what of which run, and ``facts``."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "job": job, "run_id": run_id, "event": event, **facts})


def kind_of(progress: Progress) -> str:
    """What the line about a bulk job's progress is of."""
    if progress.event:
        return "cost" if isinstance(progress.event, Price) else "warning"
    return "progress" if progress.num_shards else "starting"


def of_job(progress: Progress) -> dict[str, Any]:
    """How far a bulk job is, and what was told of it: the message, and of an attempt its shard and number."""
    left = progress.seconds_left
    return {
        **_told(progress.event),
        "plan_id": progress.plan_id,
        "shards_done": progress.num_done,
        "num_shards": progress.num_shards,
        "samples_done": progress.samples_done,
        "num_samples": progress.num_samples,
        "bytes_done": progress.bytes_done,
        "samples_per_second": round(progress.samples_per_second, 1),
        "eta_seconds": None if left is None else round(left, 1),
    }


def of_report(metrics: Metrics, num_images: int) -> dict[str, Any]:
    """How far a training run is and how it does, by a report of it."""
    speed, left = metrics.get("images_per_second"), seconds_left(metrics, num_images)
    return {
        "level": "info",
        "images_seen": int(metrics["images_seen"]),
        "num_images": num_images,
        "images_per_second": finite(speed),
        "eta_seconds": None if left is None else round(left, 1),
        "metrics": headline_values(metrics),
    }


def of_news(text: str, metrics: Metrics, num_images: int) -> tuple[str, dict[str, Any]]:
    """The kind of what happened in a training run, whose latest report is ``metrics``, and what is known of it.

    ``text`` is a `genworker.training.hooks.News` or a plain line.
    """
    facts: Mapping[str, Any] = getattr(text, "facts", {})
    seen = {"images_seen": int(metrics.get("images_seen", 0)), "num_images": num_images}
    level = getattr(text, "level", "warning")
    return getattr(text, "kind", "warning"), {"level": level, "message": str(text), **seen, **facts}


def seconds_left(metrics: Metrics, num_images: int) -> float | None:
    """Of a training run at the speed of its report; None where that is not known."""
    speed, left = metrics.get("images_per_second"), num_images - int(metrics["images_seen"])
    return 0.0 if left <= 0 else left / speed if speed else None


def _told(event: str) -> dict[str, Any]:
    if isinstance(event, Event):
        return {"message": str(event), "shard": event.shard, "attempt": event.attempt}
    return {"message": event} if event else {}
