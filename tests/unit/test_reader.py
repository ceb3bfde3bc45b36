"""Reads of a training run: a store that fails is asked again, by the type of its error, and wrong data is refused."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from genworker.errors import ObjectMissingError, SourceError, StoreAccessError, StoreError, StoreFullError
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources.base import Blocks, SourceConfig
from genworker.training import reader
from genworker.training.loader import Loader
from genworker.training.order import held_out_indices
from genworker.training.reader import Reader, check_batch, read_exactly

if TYPE_CHECKING:
    from genworker.schema import Int64Array

NOTHING = np.empty(0, np.int64)


class ShakySource:
    """Twenty images whose label is the index; some reads fail with an error, and some images are corrupt."""

    Config: ClassVar[type[SourceConfig]] = SourceConfig
    schema = ImageSchema(channels=1, height=2, width=2, num_classes=20)
    blocks: Blocks | None = None

    def __init__(self, *errors: Exception | None, corrupt: tuple[int, ...] = ()) -> None:
        self.corrupt: list[str] = []
        self.reads = 0
        self._errors, self._corrupt = errors, corrupt

    def __len__(self) -> int:
        return 20

    def read(self, indices: Int64Array) -> SampleBatch:
        error = self._errors[self.reads] if self.reads < len(self._errors) else None
        self.reads += 1
        if error is not None:
            raise error
        found = indices.copy()
        while (bad := np.isin(found, self._corrupt)).any():
            found[bad] = (found[bad] + 1) % 20
        return SampleBatch(found, np.zeros((len(found), 2, 2, 1), np.uint8), found.copy())

    def prefetch(self, indices: Int64Array) -> None:
        """Everything is here."""

    def digest(self) -> str:
        return "0" * 64


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_FIRST_PAUSE_SECONDS", 0.01)


def test_a_store_that_fails_is_asked_again() -> None:
    """After some failures the same images come, and the failures are counted."""
    source = ShakySource(StoreError("no route"), StoreError("no route"))
    patient = Reader(source, NOTHING, 60)
    assert patient.read(np.array([3, 1])).sample_index.tolist() == [3, 1]
    assert (patient.retries, source.reads) == (2, 3)


@pytest.mark.parametrize("error", [ObjectMissingError, StoreAccessError, StoreFullError, SourceError, ValueError])
def test_what_cannot_mend_is_raised_at_once(error: type[Exception]) -> None:
    """A missing object, a refused permission and wrong data are not asked for again."""
    source = ShakySource(error("no"))
    with pytest.raises(error, match="no"):
        Reader(source, NOTHING, 60).read(np.array([0]))
    assert source.reads == 1


def test_patience_ends() -> None:
    """A store that stays away ends the run with an error that says how long it was asked and which key decides."""
    source = ShakySource(*[StoreError("get 'x' in s3://b: no route")] * 1000)
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"no route; it was asked again for \d+ s, .*store_patience_seconds is 0.3"):
        Reader(source, NOTHING, 0.3).read(np.array([0]))
    assert 0.3 <= time.monotonic() - began < 5
    assert source.reads > 2


def test_no_patience_asks_once() -> None:
    """Patience 0 ends the run at the first failure."""
    source = ShakySource(StoreError("no route"))
    with pytest.raises(SourceError, match="no route"):
        Reader(source, NOTHING, 0).read(np.array([0]))
    assert source.reads == 1


def test_closing_a_loader_ends_its_wait_for_a_store() -> None:
    """A run that is stopped in an outage ends at once, not when patience does."""
    source = ShakySource(None, *[StoreError("no route")] * 10_000)
    loader = Loader(source, batch_size=4, seed=0, patience_seconds=3600)
    next(loader)
    before = time.monotonic()
    threading.Timer(0.1, loader.close).start()
    assert list(loader) == []
    loader.close()
    assert time.monotonic() - before < 5
    assert loader.retries > 0


def test_an_outage_changes_no_draw() -> None:
    """What is drawn is the same with failures in between, and the wait for them is reported as wait for data."""
    outages = [StoreError("no route") if n % 3 == 1 else None for n in range(12)]
    with (
        Loader(ShakySource(*outages), batch_size=5, seed=1) as shaky,
        Loader(ShakySource(), batch_size=5, seed=1) as firm,
    ):
        for ours, theirs in itertools.islice(zip(shaky, firm, strict=True), 8):
            assert ours.labels is not None
            assert theirs.labels is not None
            assert ours.labels.tolist() == theirs.labels.tolist()
        assert shaky.retries >= 3
        assert shaky.wait_seconds > firm.wait_seconds


def test_a_stand_in_is_never_an_image_that_is_held_out() -> None:
    """Where the image after a corrupt one is held out, the one after that stands in."""
    source = ShakySource(corrupt=(4, 9, 19))
    held_out = np.array([0, 5, 6, 10])
    batch = Reader(source, held_out, 0).read(np.array([4, 8, 9, 19]))
    assert batch.sample_index.tolist() == [7, 8, 11, 1]


def test_held_out_images_are_read_without_stand_ins() -> None:
    """A held-out image that is corrupt is left out: what would stand in for it was trained on."""
    batch = read_exactly(ShakySource(corrupt=(5,)), np.array([0, 5, 10]))
    assert batch.sample_index.tolist() == [0, 10]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 10]
    assert len(batch.pixels) == 2
    assert len(read_exactly(ShakySource(), held_out_indices(20, 0))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 20])}, r"image 7 has label 20; labels must lie in \[0, num_classes 20\)"),
        ({"labels": np.array([-1, 0])}, "image 3 has label -1"),
        ({"labels": None}, "gives no labels, and says that it has 2x2x1, 20 classes"),
        ({"pixels": np.zeros((2, 2, 2, 3), np.uint8)}, "gives images of 2x2x3, and says that it has 2x2x1"),
    ],
)
def test_a_batch_that_breaks_the_schema_is_refused(change: dict[str, Int64Array | None], message: str) -> None:
    """Wrong shapes and labels name the image and the rule instead of reaching a network."""
    good = SampleBatch(np.array([3, 7]), np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 19]))
    check_batch(good, ShakySource())
    with pytest.raises(SourceError, match=message):
        check_batch(replace(good, **change), ShakySource())  # type: ignore[arg-type]


def test_only_images_that_are_held_out_are_none_to_train_on() -> None:
    """Where all others are corrupt, that is the end, not a search without one."""
    held_out = np.array([3, 4])
    reader = Reader(ShakySource(corrupt=tuple(set(range(20)) - {3, 4})), held_out, 5.0)
    with pytest.raises(SourceError, match=r"all others are held out .* so there is none to train on"):
        reader.read(np.arange(4))
