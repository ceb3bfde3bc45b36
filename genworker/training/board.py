"""What passes between the workers of a run and its driver: metrics and events out, the wish to stop in.

A plain class; the trainer makes it a tiny actor that outlives the workers, so that it also knows what they can not: how often
they were started, and which error ended them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genworker.errors import GenworkerError
from genworker.training.hooks import News
from genworker.training.record import Metrics


@dataclass
class Standing:
    """What a driver reads: see `Board`."""

    metrics: Metrics = field(default_factory=dict)
    events: list[News] = field(default_factory=list)
    error: tuple[type[GenworkerError], str] | None = None
    last_checkpoint: str | None = None
    starts: int = 0
    num_workers: int = 0


class Board:
    """The latest metrics, the events so far, the first error of a worker, the newest checkpoint, the wish to stop."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._stop = False
        self._controller: Any = None

    def meet(self, controller: Any) -> None:
        """Take the actor that runs the workers."""
        self._controller = controller

    def controller(self) -> Any:
        """The actor that runs the workers, or None before it has started."""
        return self._controller

    def start(self, world_size: int, images_seen: int) -> bool:
        """Rank 0 starts, or starts again after a loss; returns whether it should not, because the run has failed."""
        standing = self._standing
        standing.starts += 1
        standing.num_workers = world_size
        again = standing.starts > 1
        if standing.error is None:
            workers = "1 worker goes" if world_size == 1 else f"{world_size} workers go"
            where = f"on from image {images_seen}" if again or images_seen else "to work"
            standing.events.append(
                News(
                    f"{workers} {where}, start {standing.starts}",
                    "resumed" if again or images_seen else "started",
                    "warning" if again else "info",
                    quiet=not again,
                    images_seen=images_seen,
                    workers=world_size,
                )
            )
        return standing.error is not None

    def report(self, metrics: Metrics) -> None:
        """Take rank 0's metrics."""
        self._standing.metrics = metrics

    def request_stop(self) -> None:
        """Make `stop_requested` True from now on."""
        self._stop = True

    def go_on(self) -> None:
        """Take the wish to stop back: the workers that it was meant for have ended."""
        self._stop = False

    def stop_requested(self) -> bool:
        """Whether the driver wishes the run to save and end."""
        return self._stop

    def failed(self) -> bool:
        """Whether a worker ended with an error that another start would meet again."""
        return self._standing.error is not None

    def event(self, text: str) -> None:
        """Take a line for the driver to show; a plain one is a warning."""
        self._standing.events.append(text if isinstance(text, News) else News(text))

    def stored(self, key: str) -> None:
        """Take the key of a checkpoint that is stored."""
        self._standing.last_checkpoint = key

    def fail(self, error: GenworkerError) -> None:
        """Keep the first error of a worker, because Ray Train wraps it in text."""
        self._standing.error = self._standing.error or (type(error), str(error))

    def read(self) -> Standing:
        """Everything."""
        return self._standing
