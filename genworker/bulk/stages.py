"""Where the time of a task goes, stage by stage; sums of many tasks say where the time of a job goes.

Seconds of wall clock of the one thread that carries the task out. It decides nothing, and no stored object holds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass
class StageSeconds:
    """Seconds per stage of one task, or of several together.

    Attributes:
        latents: drawing latents and labels.
        forward: the generator; on a GPU the wait for it, because it computes while other stages run.
        quantise: images to uint8, and their way from the device.
        encode: pixels to image bytes; of the task's own thread, so with encoder threads the wait for them.
        write: encoded images to the bytes of a shard.
        put: into the store, with its checksum.
        waiting: for the processor or device, while another task of the same actor had it.
    """

    latents: float = 0.0
    forward: float = 0.0
    quantise: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    put: float = 0.0
    waiting: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time inside the block to ``stage``, also when the block raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)

    def add(self, other: StageSeconds) -> None:
        """Add the seconds of other tasks."""
        for stage, seconds in asdict(other).items():
            setattr(self, stage, getattr(self, stage) + seconds)

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return float(sum(asdict(self).values()))
