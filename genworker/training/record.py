"""What a run leaves beside its checkpoints: the spec that it is a run of, and its metrics over time."""

from __future__ import annotations

import json
import math

from genworker.config import canonical_json
from genworker.errors import CheckpointError, ObjectExistsError, ObjectMissingError, UsageError
from genworker.stores.base import Store
from genworker.training.spec import TrainSpec, spec_differences

SPEC_KEY = "spec.json"
METRICS_KEY = "metrics.jsonl"
BUNDLE_PREFIX = "bundle/"

Metrics = dict[str, float]


def claim(spec: TrainSpec, store: Store) -> None:
    """Write spec.json, or check that the one there is of the same run. Raises CheckpointError with the differences."""
    try:
        store.put(SPEC_KEY, canonical_json(spec.model_dump(mode="json")).encode())
    except ObjectExistsError as err:
        theirs = _stored_spec(store)
        if theirs.spec_id != spec.spec_id:
            lines = "\n  ".join(spec_differences(spec.identity(), theirs.identity()))
            raise CheckpointError(
                f"{store.url} holds another run; train into another URL, or run the same spec to resume it. "
                f"Differences:\n  {lines}"
            ) from err


def _stored_spec(store: Store) -> TrainSpec:
    try:
        return TrainSpec.parse(json.loads(store.get(SPEC_KEY)), origin=f"{store.url}/{SPEC_KEY}")
    except (ValueError, UsageError) as err:
        raise CheckpointError(
            f"{store.url}/{SPEC_KEY} is damaged or of another version of genworker, so the run here cannot be resumed; "
            f"train into another URL: {err}"
        ) from err


class History:
    """metrics.jsonl: one line per report. Written whole with each checkpoint, so that both tell the same story."""

    def __init__(self, store: Store, images_seen: int) -> None:
        self._store = store
        self._lines = [line for line in read_metrics(store) if line["images_seen"] <= images_seen]

    def append(self, metrics: Metrics) -> None:
        """Add a report; it is stored with the next `flush`."""
        self._lines.append(metrics)

    def last(self) -> Metrics:
        """The last report, or none."""
        return self._lines[-1] if self._lines else {}

    def flush(self) -> None:
        """Store all reports. Numbers that are not finite become null, because JSON has no word for them."""
        lines = (
            {name: value if math.isfinite(value) else None for name, value in line.items()} for line in self._lines
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._store.put(METRICS_KEY, text.encode(), overwrite=True)


def read_metrics(store: Store) -> list[Metrics]:
    """The reports of a run in order, each a mapping of names to numbers; empty when there is none yet."""
    try:
        text = store.get(METRICS_KEY).decode()
    except ObjectMissingError:
        return []
    lines = (json.loads(line) for line in text.splitlines())
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]
