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

# Few enough that one batch keeps all threads busy, and enough that handing them over costs nothing.
_IMAGES_PER_PART = 64


def seconds_to_encode(codec: Codec, pixels: Pixels) -> float:
    """What one image of ``pixels`` [N, H, W, C] takes this thread, without what others take of the machine."""
    codec.encode(pixels[0])  # the first call loads
    began = time.thread_time()
    for image in pixels:
        codec.encode(image)
    return (time.thread_time() - began) / len(pixels)


class Encoder:
    """A codec and ``num_threads`` threads to run it in; with none of them the caller's thread encodes.

    A batch is shared among the threads, some images to each: on a GPU one batch can be a whole shard.
    """

    def __init__(self, codec: Codec, num_threads: int) -> None:
        self._codec = codec
        self._threads = ThreadPoolExecutor(num_threads, "encoder") if num_threads else None
        self._ahead = 2 * num_threads

    def encode(self, batches: Iterator[SampleBatch], stages: StageSeconds) -> Iterator[tuple[SampleBatch, list[bytes]]]:
        """Yield each batch with its images as the codec encodes them; may be called by several threads at once.

        At most 2 x num_threads batches of each call wait or are being encoded, and no more parts of them than that, but always
        those of one batch while the next is made. What a batch raises is raised in its place.
        """
        pending: deque[tuple[SampleBatch, list[Future[list[bytes]]]]] = deque()
        try:
            for batch in batches:
                if self._threads is None:
                    with stages.timed("encode"):
                        images = self._encode(batch.pixels)
                    yield batch, images
                    continue
                starts = range(0, len(batch), _IMAGES_PER_PART)
                parts = (batch.pixels[start : start + _IMAGES_PER_PART] for start in starts)
                pending.append((batch, [self._threads.submit(self._encode, part) for part in parts]))
                while len(pending) > 1 and sum(len(futures) for _, futures in pending) > self._ahead:
                    yield self._first(pending, stages)
            while pending:
                yield self._first(pending, stages)
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()

    def _encode(self, pixels: Pixels) -> list[bytes]:
        return [self._codec.encode(image) for image in pixels]

    @staticmethod
    def _first(
        pending: deque[tuple[SampleBatch, list[Future[list[bytes]]]]], stages: StageSeconds
    ) -> tuple[SampleBatch, list[bytes]]:
        batch, futures = pending[0]
        with stages.timed("encode"):
            images = [image for future in futures for image in future.result()]
        pending.popleft()  # not before: what raises leaves the others to be cancelled
        return batch, images
