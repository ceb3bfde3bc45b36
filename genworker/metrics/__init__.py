"""Metrics by name: how good what a generator makes is, beside real images.

To add one: write a module with a class that follows `base.Metric`, and add a line here; the contract tests and
`genworker evaluate` take it from the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genworker.errors import UsageError
from genworker.registry import lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.metrics.base import Better, Metric

METRICS: dict[str, str] = {
    "frechet": "genworker.metrics.frechet.Frechet",
    "kid": "genworker.metrics.kid.KernelDistance",
    "prdc": "genworker.metrics.prdc.PrecisionRecall",
    "modes": "genworker.metrics.modes.Modes",
    "label-accuracy": "genworker.metrics.label_accuracy.LabelAccuracy",
    "cas": "genworker.metrics.cas.ClassificationAccuracy",
}


# Of real images and of generated ones: with fewer, one or another of the metrics cannot be computed.
MIN_IMAGES = 20


def names() -> list[str]:
    """The names of all metrics."""
    return list(METRICS)


def get(name: str) -> type[Metric]:
    """The class of the metric called ``name``; raises UsageError that lists the known names."""
    found: type[Metric] = lookup("metric", METRICS, name)
    return found


def numbers() -> dict[str, Better]:
    """The names of all numbers that the metrics compute, and whether low or high is better."""
    return {number: better for name in METRICS for number, better in get(name).numbers.items()}


def of_number(number: str) -> str:
    """The name of the metric that computes ``number``; raises UsageError when there is none."""
    for name in METRICS:
        if number in get(name).numbers:
            return name
    raise UsageError(f"metric {number!r}: no metric computes such a number; known: {', '.join(numbers())}")


def higher_is_better(number: str) -> bool:
    """Whether high values of ``number`` (as `numbers` names it) are better; raises UsageError for an unknown one."""
    return get(of_number(number)).numbers[number] == "high"


def choose(names: Sequence[str] | None, also: Sequence[str] = (), *, classes: bool, labels: bool) -> list[str]:
    """The metrics to compute, in the order of the table.

    Args:
        names: what the user asked for; None takes all that apply and are not costly.
        also: besides those.
        classes: whether the real images have classes.
        labels: whether the generated ones have labels.

    Raises:
        UsageError: a name is unknown, or needs classes or labels that are not there.
    """
    there: set[str] = {need for need, is_there in (("classes", classes), ("labels", labels)) if is_there}
    for name in (*(names or ()), *also):
        if missing := get(name).needs - there:
            why = "the data has no classes" if "classes" in missing else "the generator is not conditional"
            raise UsageError(f"metric {name!r} needs {' and '.join(sorted(missing))}: {why}; leave it out")
    usual = [name for name in METRICS if get(name).needs <= there and not get(name).costly]
    wanted = {*(usual if names is None else names), *also}
    return [name for name in METRICS if name in wanted]
