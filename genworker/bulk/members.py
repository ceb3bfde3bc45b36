"""The actors of a pool: which there are, which are ready, and how many tasks each of them holds.

In: actors that start, are ready, are given tasks, answer and go. Out: who takes the next task, and who can be spared. It
starts and ends nothing and knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator
from typing import Any

from genworker.bulk.attempts import Attempt


class Member:
    """One actor.

    ``where`` and the id of its ``node`` are known once it is ready; ``given`` are the attempts that it has not answered;
    ``failures`` counts those that failed since one succeeded.
    """

    def __init__(self, actor: Any) -> None:
        self.actor, self.started_at = actor, time.monotonic()
        self.where: str | None = None
        self.node = ""
        self.given: dict[Attempt, None] = {}
        self.failures = 0
        self.gone = False


class Members:
    """All actors of a pool.

    Args:
        depth: tasks that one may hold.
    """

    def __init__(self, depth: int) -> None:
        self._all: dict[Member, None] = {}
        # Ready members by the number of tasks that they hold: giving one costs the same with ten actors and a thousand.
        self._loads: list[dict[Member, None]] = [{} for _ in range(depth + 1)]

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._all))

    @property
    def num_ready(self) -> int:
        """How many can take tasks, or hold some."""
        return sum(map(len, self._loads))

    def any_ready(self) -> Member | None:
        """One that is ready, the least busy first; None while there is none."""
        return next((member for load in self._loads for member in load), None)

    def holding(self, load: int, without: Container[Member] = ()) -> Member | None:
        """One that is ready and holds ``load`` tasks, none of those ``without``; or None."""
        return next((member for member in self._loads[load] if member not in without), None)

    def waiting(self) -> list[Member]:
        """Those that start or wait for a place, the oldest first."""
        return [member for member in self._all if member.where is None]

    def spare(self, tasks_left: int | None) -> list[Member]:
        """Idle members that the tasks which have no receipt yet cannot use, those on wholly idle nodes first.

        One idle member for each task is kept: a task that nobody has goes to one, and one that takes long to a second one.
        """
        if tasks_left is None:
            return []
        busy = {member.node for load in self._loads[1:] for member in load}
        idle = sorted(self._loads[0], key=lambda member: (member.node in busy, member.node))
        return idle[: max(0, len(idle) - tasks_left)]

    def add(self, actor: Any) -> Member:
        """Take an actor that was started."""
        member = Member(actor)
        self._all[member] = None
        return member

    def ready(self, member: Member, where: str, node: str) -> None:
        """Note that a member can take tasks; ``where`` is its address and process, ``node`` the id of its node."""
        member.where, member.node = where, node
        self._move(member)

    def give(self, member: Member, attempt: Attempt) -> None:
        """Note that a ready member was given an attempt."""
        attempt.where = member.where or ""
        member.given[attempt] = None
        self._move(member)

    def answered(self, member: Member, attempt: Attempt) -> None:
        """Note that an attempt of a member has ended."""
        del member.given[attempt]
        self._move(member)

    def remove(self, member: Member) -> None:
        """Forget a member; what it still says is not to be heard."""
        member.gone = True
        del self._all[member]
        self._take_out(member)

    def _move(self, member: Member) -> None:
        self._take_out(member)
        self._loads[len(member.given)][member] = None

    def _take_out(self, member: Member) -> None:
        for load in self._loads:
            load.pop(member, None)
