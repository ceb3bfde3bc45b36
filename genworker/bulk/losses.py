"""The actors that a pool loses: what is told of them, and how many are too many.

In: deaths, refusals, and tasks that were finished. Out: events, and in the end an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.exceptions import RayActorError

from genworker.bulk.members import Member
from genworker.errors import ClusterError, GenworkerError, JobError, OtherMachineError

_LOSSES_OF_A_SMALL_POOL = 3
_MOST_BROKEN_ON_A_NODE = 3


class Losses:
    """Tells actors that are lost whatever they do from a node that takes all of its actors along.

    Args:
        on_event: told in one line of every death, of every actor that was given up, and of every node whose actors refuse.
        on_refused: given the id of such a node.
    """

    def __init__(self, on_event: Callable[[str], None], on_refused: Callable[[str], None]) -> None:
        self._refusal: GenworkerError | None = None
        self._broken: dict[str, list[float]] = {}  # when actors of a node were given up
        self._on_event, self._on_refused = on_event, on_refused
        self._left_out: set[str] = set()
        self._in_a_row = self._most_members = 0

    def died(self, err: RayActorError, num_members: int) -> None:
        """Note that one of so many actors died.

        Raises:
            JobError: so did too many.
        """
        reason = reason_of(err)
        if self._too_many(num_members):
            raise JobError(
                f"{self._in_a_row} actors died without finishing a task in between, the last one: "
                f"{reason if err.actor_init_failed else err}; the dataset is not published, what was made stays: mend the "
                "cause (memory is the usual one) and run the command again"
            ) from err
        self._on_event(f"an actor died and is replaced: {reason}")

    def broke(self, err: Exception, member: Member, num_members: int) -> None:
        """Note that ``member``, one of so many, was given up, because of ``err``; after a few, its node is left out.

        Raises:
            JobError: so were too many.
        """
        if self._too_many(num_members):
            raise JobError(
                f"{self._in_a_row} actors were given up without finishing a task in between, the last one on {member.where}: "
                f"{err}; the dataset is not published, what was made stays: mend the cause and run the command again"
            ) from err
        broken = self._broken.setdefault(member.node, [])
        broken.append(time.monotonic())
        if len(broken) < _MOST_BROKEN_ON_A_NODE or member.node in self._left_out:
            self._on_event(f"the actor on {member.where} is replaced: {err}")
            return
        self._refusal = err if isinstance(err, GenworkerError) else JobError(f"{type(err).__name__}: {err}")
        self._leave_out(member, f"is the third that is given up on its node, which is left out: {err}")

    def refused(self, err: OtherMachineError, member: Member, num_members: int) -> None:
        """Note that ``member``, one of so many, may not make shards of this plan.

        Raises:
            OtherMachineError: so may none of too many.
        """
        self._refusal = err
        if self._too_many(num_members):
            raise err
        self._leave_out(member, f"refused, and its node is left out: {err}")

    def task_finished(self, member: Member) -> None:
        """Note that somebody does finish tasks."""
        self._in_a_row = self._most_members = 0
        # Those that were there before say nothing of who comes after: one GPU of many may be broken.
        if (broken := self._broken.get(member.node)) and member.started_at > broken[-1]:
            del self._broken[member.node]

    def reason_for(self, shortage: ClusterError, room: int) -> GenworkerError:
        """What to tell of a shortage that ends the job, in a cluster with room for so many actors on nodes not left out."""
        if self._refusal is None:
            return shortage
        if room == 0:
            return self._refusal
        return ClusterError(f"{shortage}; nodes were left out: {self._refusal}")

    def _leave_out(self, member: Member, why: str) -> None:
        if member.node not in self._left_out:
            self._left_out.add(member.node)
            self._on_refused(member.node)
            self._on_event(f"the actor on {member.where} {why}")

    def _too_many(self, num_members: int) -> bool:
        # All may be lost at once, and those that replace them once more. What counts is how many there were: after the
        # first ones of a node are gone, few are left.
        self._in_a_row += 1
        self._most_members = max(self._most_members, num_members)
        return self._in_a_row > max(_LOSSES_OF_A_SMALL_POOL, 2 * self._most_members)


def reason_of(err: RayActorError) -> str:
    """One line of Ray's many. Of an error in an actor's constructor Ray keeps the text alone, which ends with the error."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
    return lines[-1] if err.actor_init_failed else lines[0]
