"""What the lines and files of a run have to be for a report to rely on them: anybody may have written them since.

In: JSON values. Out: None, or the first thing that is wrong. Values are checked and left as they are.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genworker.config import first_problem

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Number = float | None


class Stored(BaseModel):
    """JSON numbers are numbers and texts are texts; what is not named here may be there too."""

    model_config = ConfigDict(strict=True, extra="allow")


class Report(Stored):
    """A line of metrics.jsonl: numbers, null where they were not finite, or one per latent."""

    images_seen: Whole
    __pydantic_extra__: dict[str, Number | list[Number]]


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


def problem_of(value: Any, kind: type[Stored]) -> str | None:
    """The first thing for which ``value`` is none of ``kind``, or None."""
    try:
        kind.model_validate(value)
    except ValidationError as err:
        return first_problem(err)
    return None
