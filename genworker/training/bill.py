"""What a training run costs: the time of its workers, counted while they work, times a price.

In: how many workers there are, looked at again and again, and the run's reports. Out: two events for the user, an estimate
early on and the cost at the end. Without a price it is silent. Earlier starts of a resumed run have told their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from genworker.training.hooks import Metrics, News
from genworker.training.spec import TrainSpec

_ESTIMATE_REPORTS = 2  # the first holds the start


class Bill:
    """Counts from one `look` to the next; as a context manager it tells the cost at the end, however that comes."""

    def __init__(
        self, spec: TrainSpec, on_event: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        resources = spec.resources
        self._num_images, self._price = spec.training.images, resources.price_per_hour
        self._units = 1 if resources.use_gpu else resources.cpus_per_worker
        self._on_event, self._clock = on_event, clock
        self._worker_seconds, self._num_workers, self._looked_at = 0.0, 0, clock()
        self._report: Metrics = {}
        self._num_reports = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.look(0, self._report)
        if self._price is not None:
            seconds, cost = round(self._worker_seconds, 1), self._cost(self._worker_seconds)
            text = f"cost of this start: {cost:.4f}, {seconds / 3600:,.2f} hours of workers"
            self._on_event(News(text, "cost", "info", cost=round(cost, 6), worker_seconds=seconds))

    def look(self, num_workers: int, report: Metrics) -> None:
        """Take note of how many workers there are from now on, and of the newest report of the run."""
        now = self._clock()
        self._worker_seconds += self._num_workers * (now - self._looked_at)
        self._num_workers, self._looked_at = num_workers, now
        if report != self._report:
            self._report = report
            self._num_reports += 1
            if self._num_reports == _ESTIMATE_REPORTS:
                self._estimate()

    def _estimate(self) -> None:
        speed, left = self._report.get("images_per_second"), self._num_images - self._report["images_seen"]
        if self._price is None or not speed or left <= 0:
            return
        cost = self._cost(self._worker_seconds + self._num_workers * left / speed)
        text = f"estimate: {left:,} more images in about {left / speed:,.0f} s; this start will cost about {cost:.4f}"
        self._on_event(News(text, "estimate", "info", cost=round(cost, 6), eta_seconds=round(left / speed, 1)))

    def _cost(self, worker_seconds: float) -> float:
        return worker_seconds / 3600 * self._units * (self._price or 0.0)
