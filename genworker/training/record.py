"""What a run leaves beside its checkpoints: the spec that it is a run of, and its metrics over time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from genworker.config import canonical_json
from genworker.errors import CheckpointError, ObjectExistsError, ObjectMissingError, UsageError
from genworker.stores.base import Store
from genworker.training import checkpoint, numbered
from genworker.training.hooks import Metrics
from genworker.training.spec import TrainSpec, spec_differences

SPEC_KEY = "spec.json"
METRICS_KEY = "metrics.jsonl"
ALARMS_KEY = "alarms.jsonl"
ENVIRONMENT_KEY = "environment.jsonl"  # one line per start: when, on what, from where
EVALUATIONS_PREFIX = "evaluations/"
SAMPLES_PREFIX = "samples/"
_EVALUATION_SUFFIX = ".json"
BUNDLE_PREFIX = "bundle/"
ROLLBACKS_KEY = "rollbacks.jsonl"  # one line per rollback: its number, the images seen where it went back to
BEST_PREFIX = "best/"  # the bundle of the checkpoint with the best evaluation so far


def claim(spec: TrainSpec, store: Store, *, goes_on: bool = True) -> None:
    """Write spec.json, or check that the one there is of the same run.

    A spec.json with nothing beside it is of a run that never started; another spec takes its place. So does the same run's with
    other settings that may change from start to start, such as workers, where it ``goes_on``: reports go by what holds now.

    Raises:
        CheckpointError: another run is there, with the differences.
    """
    text = canonical_json(spec.model_dump(mode="json")).encode()
    try:
        store.put(SPEC_KEY, text)
    except ObjectExistsError as err:
        theirs = _stored_spec(store)
        if theirs.spec_id == spec.spec_id:
            if theirs != spec and goes_on:
                store.put(SPEC_KEY, text, overwrite=True)
            return
        keys = [info.key for info in store.list()]
        if keys == [SPEC_KEY]:
            store.put(SPEC_KEY, text, overwrite=True)
            return
        lines = "\n  ".join(spec_differences(spec.identity(), theirs.identity()))
        raise CheckpointError(
            f"{store.url} holds another run; train into another URL, or run the same spec to resume it{_if_bare(keys)}. "
            f"Differences:\n  {lines}"
        ) from err


def _if_bare(keys: list[str]) -> str:
    """What else can be done where a run has nothing yet that it would resume from, and may or may not be going on."""
    if any(key.startswith((checkpoint.PREFIX, BUNDLE_PREFIX)) for key in keys):
        return ""
    return f"; it has no checkpoint: if it is not going on, delete its {SPEC_KEY} and run the command again"


def _stored_spec(store: Store) -> TrainSpec:
    try:
        return TrainSpec.parse(json.loads(store.get(SPEC_KEY)), origin=f"{store.url}/{SPEC_KEY}")
    except (ValueError, UsageError) as err:
        raise CheckpointError(
            f"{store.url}/{SPEC_KEY} is damaged or of another version of genworker, so the run here cannot be resumed; "
            f"train into another URL: {err}"
        ) from err


class Lines:
    """A file of JSON lines about a run, such as metrics.jsonl. Written whole with each checkpoint."""

    def __init__(self, store: Store, key: str, images_seen: int | None = None) -> None:
        """Take over the lines up to ``images_seen`` (None: all); what came after it is told again."""
        self._store, self._key = store, key
        self._lines = read_lines(store, key)
        if images_seen is not None:
            self.cut(images_seen)

    def cut(self, images_seen: int) -> None:
        """Drop the lines after ``images_seen``."""
        self._lines = [line for line in self._lines if line["images_seen"] <= images_seen]

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is stored with the next `flush`."""
        self._lines.append(line)

    def last(self) -> dict[str, Any]:
        """The last line, or an empty one."""
        return self._lines[-1] if self._lines else {}

    def text(self) -> bytes:
        """All lines. Numbers that are not finite become null, because JSON has no word for them."""
        return "".join(json.dumps(finite(line)) + "\n" for line in self._lines).encode()

    def flush(self, text: bytes | None = None) -> None:
        """Store all lines, or those of an earlier ``text``."""
        self._store.put(self._key, self.text() if text is None else text, overwrite=True)


def finite(value: Any) -> Any:
    """``value`` with None for every number that is not finite, for which JSON has no word; looks into dicts and lists."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(store: Store, key: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines in order; empty when there is none yet. Raises CheckpointError where it is damaged."""
    try:
        text = store.get(key).decode()
    except ObjectMissingError:
        return []
    except UnicodeDecodeError as err:
        raise _damaged(store, key, str(err)) from err
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError) as err:
            raise _damaged(store, key, f"line {number}: {err}") from err
        if not isinstance(lines[-1], dict):
            raise _damaged(store, key, f"line {number} is no JSON object")
    return lines


def _damaged(store: Store, key: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{store.url}/{key}: is damaged: {what}; bring it back as it was, or move it away to go on without it"
    )


def read_metrics(store: Store) -> list[Metrics]:
    """The reports of a run in order, each a mapping of names to numbers; empty when there is none yet."""
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in read_lines(store, METRICS_KEY)
    ]


def evaluation_key(images_seen: int) -> str:
    """Where the evaluation after ``images_seen`` images lies."""
    return numbered.key_of(EVALUATIONS_PREFIX, images_seen, _EVALUATION_SUFFIX)


def read_evaluations(store: Store, after: int = -1) -> list[dict[str, Any]]:
    """The evaluations of a run beyond ``after`` images, in order; each holds ``images_seen`` and ``metrics``."""
    return [line for images, key in _evaluations(store) if images > after for line in read_lines(store, key)]


def was_taken_back(store: Store, images_seen: int, rollbacks: int) -> bool:
    """Whether the run went back to before a checkpoint, made after so many images and rollbacks."""
    return any(
        line["images_seen"] < images_seen and line["rollback"] > rollbacks for line in read_lines(store, ROLLBACKS_KEY)
    )


def last_evaluated(store: Store) -> int:
    """Images seen at the newest evaluation of a run, or -1."""
    return max((images for images, _ in _evaluations(store)), default=-1)


def _evaluations(store: Store) -> Iterator[tuple[int, str]]:
    """Images seen and key of each evaluation, in order."""
    for info in store.list(EVALUATIONS_PREFIX):
        images_seen = numbered.images_of(info.key, EVALUATIONS_PREFIX, _EVALUATION_SUFFIX)
        if images_seen is not None:
            yield images_seen, info.key


def best_evaluations(evaluations: list[dict[str, Any]], metric: str, *, higher_is_better: bool = False) -> list[int]:
    """Images seen at each evaluation that has ``metric``, best first; the earlier one of equals is the better one."""
    values = [
        (-value if higher_is_better else value, int(line["images_seen"]))
        for line in evaluations
        if isinstance(value := line["metrics"].get(metric), int | float) and math.isfinite(value)
    ]
    return [images_seen for _, images_seen in sorted(values)]
