"""Stores around another one that end, or wait, at a request that a test picks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.stores import Store

_SECONDS = 30.0  # after which a test that hangs fails


class Around:
    """A store that calls `before` ahead of every request, of one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.url = store.url
        self.conditional = store.conditional

    def before(self, method: str, key: str) -> None:
        """Called with ``put`` and the like, and the key or prefix."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        asked = getattr(self._store, method)

        def ask(key: str = "", *args: Any, **named: Any) -> Any:
            with self._lock:
                self.before(method, key)
                return asked(key, *args, **named)

        return ask


class Stopping(Around):
    """Fails at its ``budget``-th change and at all that follow, as if the process ended there."""

    def __init__(self, store: Store, budget: int, before_change: Callable[[], None] = lambda: None) -> None:
        super().__init__(store)
        self.left = budget
        self._before_change = before_change

    def before(self, method: str, key: str) -> None:
        """Spend one change."""
        if method in {"put", "delete"}:
            self._before_change()
            if not self.left:
                raise InterruptedError(f"{method} {key}")
            self.left -= 1


class Waiting(Around):
    """Waits ahead of its ``at``-th request from the first change on: ``there`` is set then, ``go`` lets it go on."""

    def __init__(self, store: Store, at: int) -> None:
        super().__init__(store)
        self._at = at
        self.num_requests = 0
        self.there, self.go = threading.Event(), threading.Event()

    def before(self, method: str, key: str) -> None:
        """Count requests, and wait ahead of one; until the first change it only looks, and may as well look later."""
        if not self.num_requests and method not in {"put", "delete"}:
            return
        if self.num_requests == self._at:
            self.there.set()
            assert self.go.wait(_SECONDS)
        self.num_requests += 1


def interleave(
    first: Callable[[Any], None], second: Callable[[Any], None], store: Store, at: tuple[int, int]
) -> tuple[bool, bool]:
    """Run ``first`` up to its request ``at[0]``, ``second`` up to ``at[1]``, then ``first`` to its end, then ``second``.

    Each is given its own `Waiting`, and ends with no error. Returns which of the two came as far as that.
    """
    stores = Waiting(store, at[0]), Waiting(store, at[1])

    def run(process: Callable[[Any], None], waiting: Waiting) -> None:
        try:
            process(waiting)
        finally:
            waiting.there.set()

    threads = [
        threading.Thread(target=run, args=each, daemon=True) for each in zip((first, second), stores, strict=True)
    ]
    for thread, waiting in zip(threads, stores, strict=True):
        thread.start()
        assert waiting.there.wait(_SECONDS)
    for thread, waiting in zip(threads, stores, strict=True):
        waiting.go.set()
        thread.join(_SECONDS)
        assert not thread.is_alive()
    return stores[0].num_requests > at[0], stores[1].num_requests > at[1]
