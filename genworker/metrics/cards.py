"""The metric card: everything besides the generator that decides a score, so that only like is compared with like.

In: what was compared, by which extractor, with which settings. Out: a card, and a refusal when two cards differ. The same
model scores four times higher against another reference, or with fewer samples; a number without its card says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from genworker.config import Spec
from genworker.errors import UsageError


class Card(Spec):
    """How a score was made."""

    metric: str = Field(description="name in the registry")
    label: str = Field(description="what tables call its first number")
    extractor: str = Field(description="what turns images into features")
    extractor_digest: str = Field(description="SHA-256 of the extractor's weights")
    reference: str = Field(description="digest of the real images that were compared with")
    split: str = Field(description="which part of the data they are")
    num_real: Annotated[int, Field(ge=0)]
    num_generated: Annotated[int, Field(ge=0)]
    image_size: str = Field(description="height x width x channels")
    resize: str = Field("none", description="what was done to images before the extractor saw them")
    dtype: str = Field(description="of the generator and the extractor")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the metric")


class Measured(Spec):
    """An evaluation as it is kept with the weights that it is of."""

    images_seen: Annotated[int, Field(ge=0)] = Field(description="by the weights")
    metrics: dict[str, float | None] = Field(description="numbers by name, null where not finite")
    floor: dict[str, float | None] = Field(
        default_factory=dict, description="the same of real training images, in place of generated ones"
    )
    cards: dict[str, Card] = Field(default_factory=dict, description="by metric")

    @classmethod
    def of(cls, evaluation: Mapping[str, Any]) -> Measured:
        """What counts of an evaluation as a run keeps it; how long it took does not, it is another time each time."""
        return cls.model_validate({name: evaluation[name] for name in cls.model_fields if name in evaluation})

    @property
    def finite(self) -> dict[str, float]:
        """The numbers that are finite."""
        return {name: value for name, value in self.metrics.items() if value is not None}


@dataclass(frozen=True)
class Score:
    """The numbers of one metric, and their card."""

    numbers: Mapping[str, float]
    card: Card = field(repr=False)

    def minus(self, other: Score) -> dict[str, float]:
        """This score's numbers minus ``other``'s. Raises UsageError when they were not made alike."""
        check_comparable(self.card, other.card)
        return {name: value - other.numbers[name] for name, value in self.numbers.items()}


def check_comparable(ours: Card, theirs: Card) -> None:
    """Raise UsageError with every difference, unless both scores were made alike."""
    left, right = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    lines = [f"{key}: {left[key]!r} and {right[key]!r}" for key in left if left[key] != right[key]]
    if lines:
        text = "\n  ".join(lines)
        raise UsageError(
            f"scores of {ours.label} and {theirs.label} cannot be compared, because they were not made alike; evaluate both "
            f"with the same data, extractor and number of samples. Differences:\n  {text}"
        )
