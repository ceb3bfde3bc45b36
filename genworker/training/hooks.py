"""How a training run talks to whoever started it, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Metrics = dict[str, Any]  # of one report, by name


class News(str):
    """A line about what happened in a run, and what a log can be searched by. A plain string is news of kind ``warning``.

    Attributes:
        kind: what it is about: started, resumed, checkpoint, alarm, rollback, evaluation, ...
        level: ``info`` for what belongs to a run, ``warning`` for what someone may want to look at.
        quiet: for logs alone: a terminal has no line for it.
        facts: what is known besides, JSON-ready, such as ``images_seen`` where it happened.
    """

    kind: str
    level: Literal["info", "warning"]
    quiet: bool
    facts: Mapping[str, Any]

    def __new__(
        cls,
        text: str,
        kind: str = "warning",
        level: Literal["info", "warning"] = "warning",
        *,
        quiet: bool = False,
        **facts: Any,
    ) -> Self:
        """A line with what it is about."""
        news = super().__new__(cls, text)
        news.kind, news.level, news.quiet, news.facts = kind, level, quiet, facts
        return news


@dataclass(frozen=True)
class Hooks:
    """How a run talks to whoever started it.

    Attributes:
        on_report: called on every rank, equally often, with the run's metrics; only rank 0's are complete.
        on_event: told on rank 0, in one line, of what happened, mostly what went wrong and was dealt with, see `News`; from any
            thread.
        on_own_event: told on every rank of what it alone has seen.
        on_checkpoint: told on rank 0 the key of the checkpoint that the run resumes from, and of each once it is stored; from
            another thread.
        should_stop: asked on every rank before each step; True on any makes all save a checkpoint and return.
        should_ask: asked on every rank before each step; True on any makes all call ``ask`` right after that step.
        ask: called on every rank, equally often, for questions that only all ranks together can ask.
    """

    on_report: Callable[[Metrics], None] = lambda _metrics: None
    on_event: Callable[[str], None] = lambda _text: None
    on_own_event: Callable[[str], None] = lambda _text: None
    on_checkpoint: Callable[[str], None] = lambda _key: None
    should_stop: Callable[[], bool] = lambda: False
    should_ask: Callable[[], bool] = lambda: False
    ask: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: ``finished`` is False when it was asked to stop; it can be resumed.

    ``evaluations_told`` is the images seen at the newest evaluation that the callbacks know.
    """

    finished: bool
    images_seen: int
    metrics: Metrics
    evaluations_told: int = -1
