"""Specs of jobs that run again and again: the templates in their URL and seed, and the dates that are to be made.

In: a spec file, a date, a run id. Out: the `GenerateSpec` of one run, the same for the same date however often it is asked
for. A template sees these two values and nothing else; it can call no code and read no file.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genworker.bulk.request import GenerateSpec
from genworker.config import load_spec
from genworker.errors import UsageError

TEMPLATED = ("out", "seed")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_CHARACTERS = 1024  # the most that S3 takes for a key
_MAX_NUMBER = 2**63


class _Templates(ImmutableSandboxedEnvironment):
    """Jinja with values alone: no statements, three filters, methods of dates only, and arithmetic that stays small.

    So what comes out is hardly longer than the template.
    """

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False)
        self.globals.clear()
        self.filters = {"int": int, "lower": str.lower, "upper": str.upper}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What belongs to dates; a method of a string could make text of any length."""
        return isinstance(obj, datetime.date | datetime.timedelta | tuple) and super().is_safe_attribute(
            obj, attr, value
        )

    def wrap_str_format(self, value: Any) -> None:
        """Treat ``str.format`` as any other method of a string."""
        del value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply or divide numbers, never text."""
        if operator == "**" or not all(isinstance(v, int | float) and abs(v) < _MAX_NUMBER for v in (left, right)):
            raise SecurityError(
                f"{operator} with {left!r} and {right!r}: only numbers below 2**63 have * and %, none has **"
            )
        return super().call_binop(context, operator, left, right)


def load_run(
    path_or_preset: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    date: datetime.date | None = None,
    run_id: str | None = None,
) -> GenerateSpec:
    """The spec of one run: the file (or shipped spec) with overrides and flags, its templates filled in.

    Raises:
        UsageError: as `load_spec` does; a template asks for a value that was not given, or stands in another key than
            `TEMPLATED`; or ``run_id`` holds what no URL should.
    """
    if run_id is not None:
        check_run_id(run_id)
    given = {name: value for name, value in (("date", date), ("run_id", run_id)) if value is not None}

    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        return {key: _filled(key, value, given) if isinstance(value, str) else value for key, value in values.items()}

    return load_spec(GenerateSpec, path_or_preset, overrides, flags or {}, fill_in)


def check_run_id(run_id: str) -> None:
    """Raise UsageError for a run id that holds what no URL and no job's name should."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run id {run_id!r}: it becomes part of a URL; use letters, digits, '.', '_' and '-', 64 at most, first a letter "
            "or digit"
        )


def runs_between(
    path_or_preset: str,
    overrides: Sequence[str],
    first: datetime.date,
    last: datetime.date,
    run_id: str | None = None,
) -> list[tuple[datetime.date, GenerateSpec]]:
    """The run of every date from ``first`` to ``last``, both included.

    Raises:
        UsageError: as `load_run` does; there are no dates; or two dates have one URL.
    """
    if last < first:
        raise UsageError(f"--from {first} --to {last}: there are no dates from the first to the last; swap them")
    runs = [(date, load_run(path_or_preset, overrides, date=date, run_id=run_id)) for date in _dates(first, last)]
    urls: dict[str, datetime.date] = {}
    for date, spec in runs:
        if (other := urls.setdefault(spec.out, date)) != date:
            raise UsageError(
                f"spec {path_or_preset}: out is {spec.out} for {other} and for {date}; each run needs a URL of its own: write "
                "{{ date }} into it, as in s3://bucket/samples/dt={{ date }}"
            )
    return runs


def _dates(first: datetime.date, last: datetime.date) -> Iterator[datetime.date]:
    return (first + datetime.timedelta(days=day) for day in range((last - first).days + 1))


def _filled(key: str, text: str, given: Mapping[str, Any]) -> str:
    if "{{" not in text and "{%" not in text:
        return text
    if key not in TEMPLATED:
        raise UsageError(f"key {key!r} holds a template: only {' and '.join(TEMPLATED)} may hold templates")
    shown = repr(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "...")
    if "{%" in text or len(text) > _MAX_CHARACTERS:
        raise UsageError(
            f"key {key!r} is {shown}: cannot be filled in: a template has at most {_MAX_CHARACTERS} characters, and "
            "{{ values }} but no {% statements %}"
        )
    try:
        return _Templates().from_string(text).render(**given)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as err:
        missing = ", ".join(f"--{name.replace('_', '-')}" for name in ("date", "run_id") if name not in given)
        hint = f"; not given: {missing}" if missing else ""
        raise UsageError(f"key {key!r} is {shown}: cannot be filled in: {err}{hint}") from err
