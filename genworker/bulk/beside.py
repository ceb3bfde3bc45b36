"""Putting the files of a shard of many files, in parallel, while the shard is being made.

In: names and bytes, as a format's writer gives them. Out: objects beside the shard's key, each create-only. The table that
makes them a shard is somebody else's to put, after `wait`.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from genworker.bulk import commit
from genworker.bulk.layout import beside_key
from genworker.bulk.plan import Task
from genworker.stores.base import Store

# A put over a network is waiting, mostly. The files that wait are in memory.
_NUM_THREADS = 16
_MAX_WAITING = 64


class Beside:
    """Takes files of one shard; a context manager that ends its threads."""

    def __init__(self, store: Store, task: Task, attempt: int) -> None:
        self._store = store
        self._task = task
        self._attempt = attempt
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[tuple[str, bool]]] = deque()
        self._num_bytes = 0

    def put(self, name: str, data: bytes) -> None:
        """Store a file, now or soon; raises what an earlier one met, as `genworker.bulk.commit.put_same`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_NUM_THREADS)
        if len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft().result()
        key = beside_key(self._task.key, name)
        self._waiting.append(self._pool.submit(commit.put_same, self._store, key, data, self._attempt))
        self._num_bytes += len(data)

    def wait(self) -> int:
        """Wait until all files are stored, and return their bytes."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._num_bytes

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
