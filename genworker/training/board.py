"""What passes between the workers of a run and its driver: metrics and events out, the wish to stop in.

A plain class; the trainer makes it a tiny actor that outlives the workers, so that it also knows what they can not: how often
they were started, and which error ended them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from genworker.errors import GenworkerError
from genworker.training.hooks import Metrics, News

# States of Ray Train's controller.
_ASKING, _RESTARTING = "SchedulingState", "RestartingState"
_WITHOUT_PLACES = {_ASKING, "ReschedulingState", _RESTARTING}


@dataclass
class Standing:
    """What a driver reads: see `Board`.

    ``seconds_without_places`` is for how long the run has had none, up to the last time that this was certain: whoever has just
    asked for places may have got them, and its workers may be starting.
    """

    metrics: Metrics = field(default_factory=dict)
    events: list[News] = field(default_factory=list)
    error: tuple[type[GenworkerError], str] | None = None
    last_checkpoint: str | None = None
    starts: int = 0
    num_workers: int = 0
    seconds_without_places: float = 0.0


class Board:
    """The latest metrics, the events so far, the first error of a worker, the newest checkpoint, the wish to stop."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._stop = False
        self._controller: Any = None
        self._without_places_since: float | None = None
        self._asked_at: float | None = None

    def meet(self, controller: Any) -> None:
        """Take the actor that runs the workers, and that has no places for them yet."""
        self._controller = controller
        self._without_places_since, self._asked_at = time.monotonic(), None

    def turn(self, state: str) -> None:
        """Take the state that the actor which runs the workers is in now, by the name of Ray Train's class."""
        now = time.monotonic()
        self._asked_at = now if state == _ASKING else None
        if state not in _WITHOUT_PLACES:
            self._without_places_since = None
        elif self._without_places_since is None:
            self._without_places_since = now
        if state == _RESTARTING:
            self.event(
                News("workers were lost, and are started again from the newest checkpoint", "worker_lost", quiet=True)
            )

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
        since, until = self._without_places_since, self._asked_at or time.monotonic()
        self._standing.seconds_without_places = 0.0 if since is None else max(0.0, until - since)
        return self._standing
