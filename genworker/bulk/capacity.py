"""How many actors a pool should have, and how long it waits for a cluster that lacks the room.

In: what the user asked for and what the cluster says. Out: a number, a message now and then, and in the end an error. It
knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from genworker.errors import ClusterError

# An actor that has its place still has to start a process and load its libraries.
START_SECONDS = 300.0
_SECONDS_BETWEEN_MESSAGES = 15.0


@dataclass(frozen=True)
class Capacity:
    """How large a pool may be.

    Attributes:
        fewest: actors without which the job does not go on.
        most: actors at most, all asked for at once, so that an autoscaler sees them waiting; None: what the cluster holds.
        room: how many actors the cluster could hold now.
        describe: what an actor needs and what the cluster has, for messages.
        wait_seconds: how long to go on with less than ``fewest``.
    """

    fewest: int
    most: int | None
    room: Callable[[], int]
    describe: Callable[[], str] = lambda: ""
    wait_seconds: float = 0.0

    def wanted(self, tasks_left: int | None) -> int:
        """How many actors there should be: never more than tasks, but one at least."""
        limit = max(self.fewest, self.room()) if self.most is None else self.most
        return max(1, limit if tasks_left is None else min(limit, tasks_left))

    def needed(self, tasks_left: int | None) -> int:
        """How many actors there must be to go on: never more than tasks."""
        return self.fewest if tasks_left is None else min(self.fewest, tasks_left)

    def check(self, tasks_left: int | None = None) -> None:
        """Raise ClusterError when there is no room for those that are needed, and nothing to wait for."""
        if self.wait_seconds <= 0 and (fits := self.room()) < self.needed(tasks_left):
            raise ClusterError(
                f"{self.fewest} actors were asked for, {self.describe()}, enough for {fits}: lower --actors or add nodes"
            )


def fixed(num_actors: int) -> Capacity:
    """Exactly so many actors, on a cluster that has the room."""
    return Capacity(num_actors, num_actors, lambda: num_actors, wait_seconds=START_SECONDS)


class Patience:
    """Tells of a shortage of actors now and then, and ends it."""

    def __init__(self, capacity: Capacity, on_event: Callable[[str], None]) -> None:
        self._capacity = capacity
        self._on_event = on_event
        self._since: float | None = None
        self._told = 0.0

    def look(self, ready: int, tasks_left: int | None = None, now: float | None = None) -> None:
        """Note how many actors are ready.

        Raises:
            ClusterError: there were too few for too long.
        """
        now = time.monotonic() if now is None else now
        fewest = self._capacity.needed(tasks_left)
        if ready >= fewest:
            self._since = None
            return
        if self._since is None:
            self._since = self._told = now
        if now - self._told < _SECONDS_BETWEEN_MESSAGES and now - self._since < self._capacity.wait_seconds:
            return
        room = self._capacity.room()
        limit = self._capacity.wait_seconds
        if room >= fewest:  # they have a place, or other jobs have taken it
            limit = max(limit, START_SECONDS)
        seen = f"{ready} of at least {fewest} actors are ready, {self._capacity.describe()}, enough for {room}"
        waited = now - self._since
        if waited >= limit:
            raise ClusterError(
                f"{seen}; waited {waited:.0f} s: add nodes, lower --actors or raise --wait-timeout, then run the same "
                "command again; what was made stays"
            )
        if now - self._told >= _SECONDS_BETWEEN_MESSAGES:
            self._told = now
            self._on_event(f"waiting for the cluster: {seen}; gives up in {limit - waited:.0f} s")
