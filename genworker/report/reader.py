"""Reads what a training run has left at its URL, without changing anything.

In: a store, and where in it the run lies. Out: a `Run`. What cannot be read is named in ``Run.damaged`` and never raises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from genworker import bundle as bundles
from genworker.errors import BundleError, ObjectMissingError, UsageError
from genworker.report.lines import AlarmLine, EvaluationFile, Report, SpecFile, Start, Stored, problem_of
from genworker.report.run import Line, Run
from genworker.stores.base import ObjectInfo, Store
from genworker.training import checkpoint, record
from genworker.training.numbered import images_of
from genworker.training.recorder import DIVERGED_PREFIX


def read_run(
    store: Store, prefix: str = "", objects: Iterable[ObjectInfo] | None = None, now: float | None = None
) -> Run:
    """Read the run below ``prefix`` of a store.

    Args:
        store: where the run lies.
        prefix: empty, or the run's place with a slash at its end.
        objects: what the store lists below ``prefix``, where that is known already.
        now: seconds since the epoch.

    Raises:
        UsageError: there is no run.
        StoreError: the store cannot be read.
    """
    found = {info.key.removeprefix(prefix): info for info in (store.list(prefix) if objects is None else objects)}
    url = f"{store.url.rstrip('/')}/{prefix}".rstrip("/")
    if record.SPEC_KEY not in found:
        raise UsageError(f"{url}: there is no training run here (no {record.SPEC_KEY}); check the URL")
    reader = _Reader(store, prefix, found)
    spec = reader.spec()
    written = [info.modified for key, info in found.items() if _is_of_the_loop(key)]
    both = record.ENVIRONMENT_KEY in found and record.ALARMS_KEY in found
    return Run(
        url=url,
        spec=spec,
        reports=reader.lines(record.METRICS_KEY, Report),
        taken_back=[reader.lines(key, Report) for key in sorted(found) if key.startswith(DIVERGED_PREFIX)],
        alarms=reader.lines(record.ALARMS_KEY, AlarmLine),
        starts=reader.lines(record.ENVIRONMENT_KEY, Start),
        evaluations=reader.evaluations(),
        pictures={
            images: key for key in found if (images := images_of(key, record.SAMPLES_PREFIX, ".png")) is not None
        },
        checkpoints=sorted(
            images for key in found if (images := images_of(key, checkpoint.PREFIX, ".safetensors")) is not None
        ),
        bundle=reader.bundle(),
        last_written=max(written, default=0.0),
        now=time.time() if now is None else now,
        restarted=both and found[record.ENVIRONMENT_KEY].modified > found[record.ALARMS_KEY].modified,
        damaged=reader.damaged,
    )


def find_runs(store: Store, now: float | None = None) -> list[Run]:
    """All runs below a store's URL, in the order of their URLs; lists everything that lies there.

    A spec.json of something else, with nothing of a run beside it, is passed over.
    """
    objects = list(store.list())
    prefixes = sorted(
        info.key.removesuffix(record.SPEC_KEY)
        for info in objects
        if info.key == record.SPEC_KEY or info.key.endswith(f"/{record.SPEC_KEY}")
    )
    runs = [
        read_run(store, prefix, [info for info in objects if info.key.startswith(prefix)], now) for prefix in prefixes
    ]
    return [run for run in runs if run.spec or run.reports or run.starts or run.checkpoints or run.bundle]


class _Reader:
    """Reads a run's objects and remembers what was damaged."""

    def __init__(self, store: Store, prefix: str, found: dict[str, ObjectInfo]) -> None:
        self._store, self._prefix, self._found = store, prefix, found
        self.damaged: list[str] = []

    def json(self, key: str) -> Any:
        text = self._text(key)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as err:
            self.damaged.append(f"{key} is not JSON: {err}")
            return None

    def spec(self) -> Line:
        """Empty where it is damaged, or of something else."""
        value = self.json(record.SPEC_KEY)
        return value if value is not None and self._fits(value, SpecFile, f"{record.SPEC_KEY} is of no run") else {}

    def lines(self, key: str, kind: type[Report | AlarmLine | Start]) -> list[Line]:
        lines = []
        for number, text in enumerate((self._text(key) or "").splitlines(), 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as err:
                self.damaged.append(f"{key}, line {number} is not JSON: {err}")
                continue
            if self._fits(line, kind, f"{key}, line {number}"):
                lines.append(line)
        return lines

    def evaluations(self) -> list[Line]:
        found = []
        for key in sorted(self._found):
            if images_of(key, record.EVALUATIONS_PREFIX, ".json") is not None:
                line = self.json(key)
                if line is not None and self._fits(line, EvaluationFile, f"{key} is no evaluation"):
                    found.append(line)
        return found

    def bundle(self) -> bundles.BundleInfo | None:
        if record.BUNDLE_PREFIX + bundles.BUNDLE_KEY not in self._found:
            return None
        try:
            return bundles.load_info(self._store, self._prefix + record.BUNDLE_PREFIX)
        except BundleError as err:
            self.damaged.append(str(err))
            return None

    def _fits(self, value: Any, kind: type[Stored], what: str) -> bool:
        """Whether it is as it has to be; else it is damaged."""
        problem = problem_of(value, kind)
        if problem is not None:
            self.damaged.append(f"{what}: {problem}")
        return problem is None

    def _text(self, key: str) -> str | None:
        if key not in self._found:
            return None
        try:
            return self._store.get(self._prefix + key).decode(errors="replace")
        except ObjectMissingError:  # pruned between listing and reading
            return None


def _is_of_the_loop(key: str) -> bool:
    """Whether the training loop itself writes it; evaluations and pages may come much later."""
    names = {record.SPEC_KEY, record.METRICS_KEY, record.ALARMS_KEY, record.ENVIRONMENT_KEY}
    return key in names or key.startswith((checkpoint.PREFIX, record.BUNDLE_PREFIX, record.SAMPLES_PREFIX))
