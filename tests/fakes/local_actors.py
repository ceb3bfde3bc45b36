"""Actors in the test's own process, as far as the pool can tell: nodes die, calls stay open, and no time passes."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError

if TYPE_CHECKING:
    from collections.abc import Callable


class LocalActor:
    """Any method of it can be called as that of a Ray actor; ``answer`` says what comes back.

    Attributes:
        number: how many actors were started before it.
        node: where it lives.
        num_calls: calls of its methods.
    """

    def __init__(self, number: int, node: str, answer: Callable[..., Any]) -> None:
        self.number, self.node = number, node
        self.num_calls = 0
        self.is_dead = False
        self._answer = answer
        self._open: list[Future[Any]] = []

    def die(self) -> None:
        """End it, and with it all open calls."""
        self.is_dead = True
        for call in self._open:
            if not call.done():
                call.set_exception(RayActorError())

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(self._call, method))

    def _call(self, method: str, *args: Any) -> Any:
        call: Future[Any] = Future()
        try:
            if method == "__ray_call__":  # what it runs needs a node, and only says where the actor is
                found: Any = f"{self.node} pid {self.number}", self.node
            else:
                self.num_calls += 1
                found = self._answer(self, method, *args)
            if isinstance(found, Future):
                call = found
            elif not self.is_dead:
                call.set_result(found)
        except Exception as err:  # what a method raises is its answer
            call.set_exception(err)
        self._open.append(call)
        if self.is_dead:
            self.die()
        return SimpleNamespace(future=lambda: call)


class LocalActors:
    """Starts actors.

    Args:
        answer: called with the actor, the name of the method and its arguments; gives the answer, raises it, or gives a Future
            where it comes later.
        node: where the actor of a number lives.
    """

    def __init__(self, answer: Callable[..., Any], node: Callable[[int], str] = lambda _number: "node") -> None:
        self._answer, self._node = answer, node
        self.started: list[LocalActor] = []

    def start(self) -> LocalActor:
        """One more actor."""
        number = len(self.started)
        self.started.append(LocalActor(number, self._node(number), self._answer))
        return self.started[-1]
