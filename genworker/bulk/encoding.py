"""Encoding in order, by threads of its own where there are processors for them.

In: batches of samples. Out: the same batches, each with its encoded images. Codecs leave Python's lock while they work, so
that threads help. It never runs more than a few batches ahead of who takes them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from genworker.bulk.stages import StageSeconds
from genworker.codecs.base import Codec
from genworker.schema import Pixels, SampleBatch


def seconds_to_encode(codec: Codec, pixels: Pixels) -> float:
    """What one image of ``pixels`` [N, H, W, C] takes this thread, without what others take of the machine."""
    codec.encode(pixels[0])  # the first call loads
    began = time.thread_time()
    for image in pixels:
        codec.encode(image)
    return (time.thread_time() - began) / len(pixels)


class Encoder:
    """A codec and ``num_threads`` threads to run it in; with none of them the caller's thread encodes."""

    def __init__(self, codec: Codec, num_threads: int) -> None:
        self._codec = codec
        self._threads = ThreadPoolExecutor(num_threads, "encoder") if num_threads else None
        self._ahead = 2 * num_threads

    def encode(self, batches: Iterator[SampleBatch], stages: StageSeconds) -> Iterator[tuple[SampleBatch, list[bytes]]]:
        """Yield each batch with its images as the codec encodes them; may be called by several threads at once.

        At most 2 x num_threads batches of each call wait or are being encoded. What a batch raises is raised in its place.
        """
        pending: deque[tuple[SampleBatch, Future[list[bytes]]]] = deque()
        try:
            for batch in batches:
                if self._threads is None:
                    with stages.timed("encode"):
                        images = self._encode(batch)
                    yield batch, images
                    continue
                pending.append((batch, self._threads.submit(self._encode, batch)))
                if len(pending) > self._ahead:
                    yield self._first(pending, stages)
            while pending:
                yield self._first(pending, stages)
        finally:
            for _, future in pending:
                future.cancel()

    def _encode(self, batch: SampleBatch) -> list[bytes]:
        return [self._codec.encode(pixels) for pixels in batch.pixels]

    @staticmethod
    def _first(
        pending: deque[tuple[SampleBatch, Future[list[bytes]]]], stages: StageSeconds
    ) -> tuple[SampleBatch, list[bytes]]:
        batch, future = pending.popleft()
        with stages.timed("encode"):
            return batch, future.result()
