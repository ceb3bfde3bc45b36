"""All callbacks of a run behind one front, each in a thread of its own, so that training never waits for one or dies of one.

In: what the loop reports, and a function that tells the user. Out: calls of the callbacks, in order. A callback that fails is
named once; one that keeps failing is left out from then on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from genworker.printable import without_login
from genworker.training import callbacks

if TYPE_CHECKING:
    from genworker.schema import Pixels
    from genworker.stores.base import Store
    from genworker.training.callbacks.base import Callback, Values
    from genworker.training.spec import TrainSpec

_MAX_WAITING = 1_000  # calls that a slow callback may be behind
_MAX_FAILURES = 3  # in a row
CLOSE_SECONDS = 60.0
# After a stop: whoever sent SIGTERM kills soon, and the checkpoint is stored by then.
HURRIED_CLOSE_SECONDS = 10.0


class CallbackGroup:
    """The callbacks called ``names``; methods as those of `genworker.training.callbacks.base.Callback`, none of which raises.

    ``on_event`` is told in one line of what failed, from another thread.
    """

    def __init__(
        self,
        names: Sequence[str],
        store: Store,
        spec: TrainSpec,
        images_seen: int,
        on_event: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._lanes = [
            _Lane(name, lambda name=name: callbacks.get(name)(store, spec, images_seen), on_event)  # type: ignore[misc]
            for name in names
        ]

    def on_report(self, metrics: Values) -> None:
        """Hand a report to all."""
        self._tell("on_report", dict(metrics))

    def on_picture(self, images_seen: int, pixels: Pixels) -> None:
        """Hand a grid of samples to all."""
        self._tell("on_picture", images_seen, pixels)

    def on_evaluation(self, images_seen: int, metrics: Values) -> None:
        """Hand the metrics of an evaluation to all."""
        self._tell("on_evaluation", images_seen, dict(metrics))

    def on_alarm(self, images_seen: int, text: str) -> None:
        """Hand an alarm to all."""
        self._tell("on_alarm", images_seen, text)

    def flush(self) -> None:
        """Make all store what they were told; returns at once."""
        self._tell("flush")

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Let all finish and end them; what is not done after ``timeout_seconds`` is given up, and said. Twice is fine."""
        for lane in self._lanes:
            lane.finish()
        deadline = time.monotonic() + timeout_seconds
        for lane in self._lanes:
            lane.join(max(0.0, deadline - time.monotonic()))

    def _tell(self, method: str, *args: Any) -> None:
        for lane in self._lanes:
            lane.put(method, args)


class _Lane:
    """One callback, its thread, and the calls that wait for it."""

    def __init__(self, name: str, make: Callable[[], Callback], on_event: Callable[[str], None]) -> None:
        self._name, self._make, self._on_event = name, make, on_event
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue()
        self._off = False
        self._finishing = False
        self._given_up = False
        self._failed_before = False
        self._failures = 0
        # A daemon, so that a callback that hangs cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"callback-{name}", daemon=True)
        self._thread.start()

    def put(self, method: str, args: tuple[Any, ...]) -> None:
        if self._off or self._finishing:
            return
        if self._calls.qsize() >= _MAX_WAITING:
            self._off = True
            self._on_event(
                f"callback {self._name} is {_MAX_WAITING:,} calls behind and is left out from now on; training goes on"
            )
            return
        self._calls.put((method, args))

    def finish(self) -> None:
        if not self._finishing:
            self._finishing = True
            self._calls.put(None)

    def join(self, timeout_seconds: float) -> None:
        if self._given_up:
            return
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._off = self._given_up = True
            self._on_event(f"callback {self._name} did not finish in time; what it had not stored yet is lost")

    def _run(self) -> None:
        try:
            callback = self._make()
        except Exception as err:
            self._off = True
            self._on_event(f"callback {self._name} cannot start and is left out, training goes on: {_words(err)}")
            return
        while (call := self._calls.get()) is not None:
            if not self._off:
                self._call(callback, *call)
        self._call(callback, "close", ())

    def _call(self, callback: Callback, method: str, args: tuple[Any, ...]) -> None:
        try:
            getattr(callback, method)(*args)
        except Exception as err:
            self._failures += 1
            if not self._failed_before:
                self._on_event(f"callback {self._name} failed in {method}, training goes on: {_words(err)}")
            self._failed_before = True
            if self._failures == _MAX_FAILURES:
                self._off = True
                self._on_event(
                    f"callback {self._name} failed {_MAX_FAILURES} times in a row and is left out from now on"
                )
        else:
            self._failures = 0


def _words(err: Exception) -> str:
    """An exception in one line, without the password of a server that it may name."""
    return f"{type(err).__name__}: {without_login(' '.join(str(err).split()))}"
