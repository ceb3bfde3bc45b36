"""What the lines and files of a run have to be for a report to rely on them: anybody may have written them since.

In: JSON texts and values. Out: what of them is as it has to be, and a sentence for each thing that is not. Nothing here knows
of a store.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from genworker.config import first_problem, problems
from genworker.report.names import COUNTS, HEADLINES

_MAX_DEPTH = 32  # a spec has a handful; JSON reads more levels than YAML, in which pages show a spec, can write
_TOO_DEEP = f"is nested more than {_MAX_DEPTH} levels deep"
_MAX_NUMBER = 1e100  # no float32 squared comes near, and sums and axes of such numbers stay finite
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, as JSON writes it
_HALF_ALONE = re.compile("[\ud800-\udfff]")

_Place = tuple[str, ...]


def _in_range(number: float) -> float:
    if abs(number) > _MAX_NUMBER:
        raise ValueError(f"beyond {_MAX_NUMBER:g}")
    return number


Whole = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, AfterValidator(_in_range)] | None


class Stored(BaseModel):
    """JSON numbers are numbers and texts are texts; what is not named here may be there too."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Report(Stored):
    images_seen: Whole
    __pydantic_extra__: dict[str, Number | list[Number]]


# A line of metrics.jsonl: numbers, null where they were not finite, or one per latent, but for those that are shown as numbers.
_NUMBERS: dict[str, Any] = dict.fromkeys(("seconds", "images_per_second", *HEADLINES, *COUNTS), (Number, None))
Report = create_model("Report", __base__=_Report, **_NUMBERS)


class AlarmLine(Stored):
    """A line of alarms.jsonl."""

    images_seen: Whole
    kind: str
    text: str


class Start(Stored):
    """A line of environment.jsonl."""

    images_seen: Whole = 0
    started: str = ""
    versions: dict[str, str] = {}


class EvaluationFile(Stored):
    """A file below evaluations/."""

    images_seen: Whole
    metrics: dict[str, Number]
    floor: dict[str, Number] | None = None
    cards: dict[str, Any] | None = None
    seconds: Number = None


class _Training(Stored):
    images: Annotated[Whole, Field(ge=1)]
    checkpoint_every_images: Whole = 0


class SpecFile(Stored):
    """spec.json."""

    training: _Training


def parse(text: str) -> Any:
    """What a JSON text holds: None for the words NaN and Infinity, a replacement character for half of a surrogate pair.

    Raises:
        ValueError: it is not JSON, or nested too deeply; the message says so of it.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        if _HALF.search(text):
            value = json.loads(_HALF_ALONE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    except RecursionError as err:
        raise ValueError(_TOO_DEEP) from err
    except ValueError as err:
        raise ValueError(f"is not JSON: {err}") from err
    if _is_deeper(value):
        raise ValueError(_TOO_DEEP)
    return value


def problem_of(value: Any, kind: type[Stored]) -> str | None:
    """The first thing for which ``value`` is none of ``kind``, or None."""
    try:
        kind.model_validate(value)
    except ValidationError as err:
        return first_problem(err)
    return None


def sound(value: Any, kind: type[Stored]) -> tuple[dict[str, Any] | None, list[str]]:
    """Keep what is as it has to be.

    Returns:
        ``value`` without what in it is wrong for ``kind``, None where something is wrong that has to be there; a sentence for
        each thing that is wrong.
    """
    wrong: dict[_Place, str] = {}
    while True:
        try:
            kind.model_validate(value)
        except ValidationError as err:
            places = {
                _place(value, loc): rule for loc, rule in reversed(problems(err))
            }  # of two rules for one, the first
            problem = first_problem(err)
        else:
            return value, _sentences(wrong)
        if () in places:
            return None, _sentences(wrong) or [problem]
        wrong |= dict(reversed(places.items()))
        value = _without(value, places)


def _place(value: Any, loc: Sequence[int | str]) -> _Place:
    """The names that lead to a wrong value, as far as there are objects: of a list, all is wrong; of what lacks, nothing."""
    place: _Place = ()
    for part in loc:
        if not isinstance(value, dict) or part not in value:
            break
        value, place = value[part], (*place, str(part))
    return place


def _without(value: Any, places: Iterable[_Place]) -> Any:
    left = copy.deepcopy(value)
    for *path, name in places:
        parent = left
        for part in path:
            parent = parent.get(part, {})
        parent.pop(name, None)
    return left


def _sentences(wrong: dict[_Place, str]) -> list[str]:
    return [f"{'.'.join(place)}: {rule}" for place, rule in wrong.items()]


def _is_deeper(value: Any) -> bool:
    """Whether there are more levels than `_MAX_DEPTH`."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
