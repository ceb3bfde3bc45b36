"""Storing checkpoints beside training: one thread, one object at a time, tried again for as long as that can help.

In: snapshots. Out: objects in the run's store, the old ones pruned. A snapshot is stored whole or not at all (one PUT,
checksummed by the store), and a failure that does not pass reaches the training loop at the next save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from genworker.errors import StoreAccessError, StoreError, StoreFullError, TrainingError
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.checkpoint import Snapshot

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 20.0


class Uploader:
    """Stores snapshots in the order in which they come, at most one behind training.

    Attributes:
        url: of the run, for messages.
        last_key: of the newest checkpoint that is known to be stored, or None.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience_seconds: float,
        keep: int,
        last_key: str | None = None,
        best: Callable[[], frozenset[int]] = frozenset,
        on_stored: Callable[[str], None] = lambda _key: None,
        on_event: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Store nothing yet.

        Args:
            store: of the run.
            patience_seconds: how long a failing store is tried again.
            keep: how many of the newest checkpoints, and of the newest good ones, pruning leaves.
            last_key: of the checkpoint that the run resumes from, or None.
            best: images seen of checkpoints that pruning leaves besides; asked in the thread.
            on_stored: told each key once it is stored; called in the thread.
            on_event: told once when storing begins to fail; called in the thread.
        """
        self.last_key = last_key
        self._store, self._patience, self._keep, self._best = store, patience_seconds, keep, best
        self._on_stored, self._on_event = on_stored, on_event
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._abandoned = threading.Event()

    def save(self, snapshot: Snapshot, before: Callable[[], None] = lambda: None) -> None:
        """Begin to store a snapshot, after the one before it is stored; ``before`` is called in the thread, first.

        Raises:
            TrainingError: an earlier one could not be stored.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot, before), name="upload", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until all that was begun is stored. Raises TrainingError where it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            there = f"the last whole one is {self.last_key}" if self.last_key else "there is none yet"
            raise TrainingError(
                f"{self._store.url}: a checkpoint could not be stored: {failure}; {there}; mend the store and run the same "
                "command again to go on from there"
            ) from failure

    def close(self) -> None:
        """Give up what could not be stored so far; waits for a put that is under way."""
        self._abandoned.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, snapshot: Snapshot, before: Callable[[], None]) -> None:
        try:
            self._persistently(before)
            self._persistently(lambda: checkpoint.save(self._store, snapshot))
            self.last_key = snapshot.key
            self._on_stored(snapshot.key)
            self._persistently(lambda: checkpoint.prune(self._store, self._keep, self._best()))
        except Exception as err:  # whatever it is, it belongs to the training loop
            self._failure = err

    def _persistently(self, action: Callable[[], object]) -> None:
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                action()
            except (StoreAccessError, StoreFullError):
                raise
            except StoreError as err:
                if time.monotonic() + pause > deadline or self._abandoned.is_set():
                    raise
                if pause == _FIRST_PAUSE_SECONDS:
                    self._on_event(f"storing a checkpoint fails and is tried again for {self._patience:.0f} s: {err}")
                self._abandoned.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                return
