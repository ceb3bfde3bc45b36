"""Encoding beside other work: the same images in the same order, never far ahead, and errors where they belong."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from genworker import codecs
from genworker.bulk.encoding import Encoder
from genworker.bulk.stages import StageSeconds
from tests.fakes import dataset as fake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.schema import Pixels, SampleBatch

NUM_BATCHES, SIZE = 20, 3
CODEC = codecs.make("raw", fake.SCHEMA)


def batches(taken: list[int] | None = None) -> Iterator[SampleBatch]:
    """Twenty batches of three arithmetic samples; ``taken`` learns which were asked for."""
    for number in range(NUM_BATCHES):
        if taken is not None:
            taken.append(number)
        yield fake.samples_of(fake.SCHEMA, np.arange(number * SIZE, (number + 1) * SIZE))


class CodecThatFails:
    """Fails at the sixth batch."""

    def encode(self, pixels: Pixels) -> bytes:
        if pixels[0, 0, 0] == 5 * SIZE:
            raise ValueError("cannot be encoded")
        return CODEC.encode(pixels)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_order_and_bytes_do_not_depend_on_threads(num_threads: int) -> None:
    """Each batch comes with its own images, in order, and time is counted."""
    stages = StageSeconds()
    for number, (batch, images) in enumerate(Encoder(CODEC, num_threads).encode(batches(), stages)):
        assert batch.sample_index.tolist() == list(range(number * SIZE, (number + 1) * SIZE))
        assert images == [CODEC.encode(pixels) for pixels in batch.pixels]
    assert number == NUM_BATCHES - 1
    assert stages.encode > 0


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_it_runs_few_batches_ahead(num_threads: int) -> None:
    """Whoever takes slowly holds the source back: memory is bounded."""
    taken: list[int] = []
    for number, _ in enumerate(Encoder(CODEC, num_threads).encode(batches(taken), StageSeconds())):
        assert len(taken) <= number + 1 + 2 * num_threads


def test_one_large_batch_keeps_all_threads_busy() -> None:
    """A micro-batch of a GPU can be a whole shard; its images are shared among the threads and come back in order."""
    met = threading.Barrier(3, timeout=20)

    class Codec:
        def encode(self, pixels: Pixels) -> bytes:
            if pixels[0, 0, 0] in first_of_parts:
                met.wait()  # passed only where three threads are at it at once
            return CODEC.encode(pixels)

    batch = fake.samples_of(fake.SCHEMA, np.arange(192))
    first_of_parts = {int(batch.pixels[row, 0, 0, 0]) for row in (0, 64, 128)}
    alike = [row for row in range(192) if int(batch.pixels[row, 0, 0, 0]) in first_of_parts]
    assert alike == [0, 64, 128]
    ((_, images),) = Encoder(Codec(), 3).encode(iter([batch]), StageSeconds())  # type: ignore[arg-type]
    assert images == [CODEC.encode(pixels) for pixels in batch.pixels]


def test_a_large_batch_is_encoded_while_the_next_is_made() -> None:
    """However many parts it has: else nothing would be generated meanwhile."""
    large = [fake.samples_of(fake.SCHEMA, np.arange(number * 256, (number + 1) * 256)) for number in range(3)]
    taken: list[int] = []

    def made() -> Iterator[SampleBatch]:
        for number, batch in enumerate(large):
            taken.append(number)
            yield batch

    first = next(Encoder(CODEC, 1).encode(made(), StageSeconds()))
    assert first[0] is large[0]
    assert taken == [0, 1]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_what_a_batch_raises_comes_in_its_place(num_threads: int) -> None:
    """The batches before it are given, then the error; the encoder serves on."""
    encoder, seen = Encoder(CodecThatFails(), num_threads), []  # type: ignore[arg-type]

    def take_all() -> None:
        for batch, _ in encoder.encode(batches(), StageSeconds()):
            seen.append(int(batch.sample_index[0]) // SIZE)

    with pytest.raises(ValueError, match="cannot be encoded"):
        take_all()
    assert seen == [0, 1, 2, 3, 4]
    assert next(encoder.encode(batches(), StageSeconds()))[0].sample_index[0] == 0


def test_threads_encode_while_the_caller_does_something_else() -> None:
    """A batch is encoded by another thread than the one that takes it."""
    seen: set[str] = set()

    class Codec:
        def encode(self, pixels: Pixels) -> bytes:
            seen.add(threading.current_thread().name)
            return CODEC.encode(pixels)

    assert len(list(Encoder(Codec(), 2).encode(batches(), StageSeconds()))) == NUM_BATCHES  # type: ignore[arg-type]
    assert all(name.startswith("encoder") for name in seen)
