"""Reads what a training run has left at its URL, without changing anything.

In: a store, and where in it the run lies. Out: a `Run`. What cannot be read is named in ``Run.damaged`` and never raises.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from genworker import bundle as bundles
from genworker.errors import BundleError, ObjectMissingError, UsageError
from genworker.report.lines import AlarmLine, EvaluationFile, Report, SpecFile, Start, Stored, parse, problem_of, sound
from genworker.report.run import Line, Run
from genworker.stores.base import ObjectInfo, Store
from genworker.training import checkpoint, record
from genworker.training.numbered import images_of
from genworker.training.recorder import DIVERGED_PREFIX

_MAX_NAMED = 10  # what is damaged of one file, or of all files of a folder
_MAX_LENGTH = 400  # of a sentence: names in it may have any


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
        self._named: list[str] = []
        self._counts: Counter[str] = Counter()

    @property
    def damaged(self) -> list[str]:
        """What was so far; of what a file or a folder has too many to be read by anybody, the first ones and how many more."""
        more = {name: count - _MAX_NAMED for name, count in self._counts.items() if count > _MAX_NAMED}
        return self._named + [f"{name}: {count:,} more like these" for name, count in more.items()]

    def spec(self) -> Line:
        """Empty where it is damaged, or of something else."""
        text = self._text(record.SPEC_KEY)
        if text is None:
            return {}
        try:
            value: Line = parse(text)
            problem = problem_of(value, SpecFile)
        except ValueError as err:
            self._damage(record.SPEC_KEY, f"{record.SPEC_KEY} {err}")
            return {}
        if problem is not None:
            self._damage(record.SPEC_KEY, f"{record.SPEC_KEY} is of no run: {problem}")
        return value if problem is None else {}

    def lines(self, key: str, kind: type[Stored]) -> list[Line]:
        lines = (self._text(key) or "").splitlines()
        found = [self._sound(text, kind, key, f", line {number}") for number, text in enumerate(lines, 1)]
        return [line for line in found if line is not None]

    def evaluations(self) -> list[Line]:
        """In the order of the images seen."""
        found = []
        for key in sorted(self._found):
            images = images_of(key, record.EVALUATIONS_PREFIX, ".json")
            text = None if images is None else self._text(key)
            line = None if text is None else self._sound(text, EvaluationFile, key)
            if line is not None and line["images_seen"] != images:
                self._damage(key, f"{key}: images_seen is {line['images_seen']}, and another number in its name")
            elif line is not None:
                found.append(line)
        return sorted(found, key=lambda line: int(line["images_seen"]))

    def bundle(self) -> bundles.BundleInfo | None:
        if record.BUNDLE_PREFIX + bundles.BUNDLE_KEY not in self._found:
            return None
        try:
            return bundles.load_info(self._store, self._prefix + record.BUNDLE_PREFIX)
        except BundleError as err:
            self._damage(record.BUNDLE_PREFIX, str(err))
            return None

    def _sound(self, text: str, kind: type[Stored], key: str, where: str = "") -> Line | None:
        """What of a JSON text is as it has to be; the rest of it is damaged."""
        try:
            value, wrong = sound(parse(text), kind)
        except ValueError as err:
            self._damage(key, f"{key}{where} {err}")
            return None
        for problem in wrong:
            self._damage(key, f"{key}{where}: {problem}")
        return value

    def _damage(self, key: str, text: str) -> None:
        name = key.partition("/")[0]
        self._counts[name] += 1
        if self._counts[name] <= _MAX_NAMED:
            self._named.append(text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}...")

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
