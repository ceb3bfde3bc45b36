"""What the cluster has room for, beside what a run of training workers needs and has.

In: the resources of a spec, how many workers the cluster could hold, how many there are. Out: a wait, with messages and an
end, when the fewest have no room or others use it, and the word that there is room for more. It knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from genworker.errors import ClusterError
from genworker.training.hooks import News
from genworker.training.spec import ResourceSpec

_SECONDS_BETWEEN_LOOKS = 5.0
# Ray Train replaces a worker whose node came back at once; only a loss that stays is worth a message.
_LOST_SECONDS = 15.0
# Nodes join one after another, and each restart takes the workers half a minute.
_GAINED_SECONDS = 60.0
_SECONDS_BETWEEN_MESSAGES = 15.0
LEAST_PLACE_SECONDS = 60.0  # Ray Train's own patience with places that others use


class Room:
    """Watches the nodes of the cluster for one run.

    Ray Train by itself waits for lost nodes forever and silently, and meets nodes that join by ending all workers where they
    are, which throws away what they did since the last checkpoint.
    """

    def __init__(
        self,
        resources: ResourceSpec,
        count: Callable[[], int],
        await_fewest: Callable[[], None],
        describe: Callable[[], str],
        on_event: Callable[[str], None],
    ) -> None:
        """Watch nothing yet.

        Args:
            resources: of the run.
            count: how many workers the nodes could hold now, whoever uses them.
            await_fewest: waits until that is enough, and raises ClusterError when it takes too long.
            describe: what a worker needs and what the cluster has, for messages.
            on_event: told of a wait for places that others use.
        """
        self.await_fewest = await_fewest
        self._resources, self._count, self._describe, self._on_event = resources, count, describe, on_event
        self._next_look = 0.0
        self._fits, self._since, self._offered = -1, 0.0, False
        self._told = 0.0  # seconds without places at the last message

    def offer_nothing(self) -> None:
        """Until the nodes change, take no room for free: some of it is on nodes that will go away."""
        self._offered = True

    def look(self, num_workers: int, seconds_without_places: float = 0.0) -> int:
        """Look whether the nodes are still enough, and whether they would do for more than ``num_workers``.

        To be called often; it looks every few seconds. It blocks while there is too little room for any workers.

        Args:
            num_workers: that the run has, or had last; 0 before the first start.
            seconds_without_places: for how long it has had none, see `genworker.training.board.Standing`.

        Returns:
            The number of workers that there could be instead, told once for each change of the nodes; else 0.

        Raises:
            ClusterError: nodes were lost, and no others came in time; or others use the nodes for too long.
        """
        now = time.monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + _SECONDS_BETWEEN_LOOKS
        fits = min(self._count(), self._resources.most_workers)
        if fits != self._fits:
            self._fits, self._since, self._offered = fits, now, False
        if fits < self._resources.fewest_workers and now - self._since >= _LOST_SECONDS:
            self.await_fewest()
        elif fits >= self._resources.fewest_workers and isinstance(self._resources.workers, tuple):
            self._mind_places(seconds_without_places)
        # Others may use the room; that is found out by one attempt and not by many.
        if self._offered or not 0 < num_workers < fits or now - self._since < _GAINED_SECONDS:
            return 0
        self._offered = True
        return fits

    def _mind_places(self, waited: float) -> None:
        """Tell of a wait for places, and end it: Ray Train asks for those of an elastic group again and again."""
        if waited < self._told:
            self._told = 0.0
        if waited < _LOST_SECONDS:
            return
        limit = max(LEAST_PLACE_SECONDS, self._resources.wait_seconds)
        seen = (
            f"{self._resources.fewest_workers} workers were asked for, {self._describe()}, enough for {self._fits}, but other "
            "work uses it"
        )
        if waited >= limit:
            raise ClusterError(
                f"{seen}; waited {waited:.0f} s: end the other work, lower --workers, add nodes, or raise "
                "resources.wait_seconds, then run the same command again"
            )
        if waited - self._told >= _SECONDS_BETWEEN_MESSAGES:
            self._told = waited
            self._on_event(News(f"waiting for the cluster: {seen}; gives up in {limit - waited:.0f} s", "waiting"))
