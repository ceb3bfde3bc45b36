"""Numbers of held-out images are of held-out images, also where some cannot be decoded, and outlast a store's hiccup."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genworker.errors import SourceError, StoreError
from genworker.schema import Int64Array, SampleBatch
from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource
from genworker.training import reader
from genworker.training.examine import Examiner
from genworker.training.loader import images_of
from genworker.training.order import held_out_indices
from genworker.training.reference import real_images
from genworker.training.spec import TrainSpec
from genworker.training.step import Trainer
from tests.fakes import models

LIMIT, SHARE = 400, 0.1
CONFIG = FashionMnistConfig(url="shipped", limit=LIMIT)
HELD_OUT = held_out_indices(LIMIT, SHARE)
CORRUPT = (int(HELD_OUT[0]), int(HELD_OUT[7]))


class ShakySource(FashionMnistSource):
    """The shipped images; two of those held out are corrupt, and the store fails at first."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__(CONFIG)
        self.failures = failures

    def read(self, indices: Int64Array) -> SampleBatch:
        self.failures -= 1
        if self.failures >= 0:
            raise StoreError("no route")
        found = indices.copy()
        while (bad := np.isin(found, CORRUPT)).any():
            found[bad] = (found[bad] + 1) % LIMIT
        return super().read(found)


def spec_of(patience_seconds: float = 60.0) -> TrainSpec:
    return models.train_spec(limit=LIMIT, holdout_share=SHARE, store_patience_seconds=patience_seconds)


def examiner_of(
    monkeypatch: pytest.MonkeyPatch, source: ShakySource, spec: TrainSpec
) -> tuple[Examiner, list[torch.Tensor]]:
    """An examiner, and the training and held-out images that it will have shown to the family."""
    trainer, shown = Trainer(spec, source, 0, 1, torch.device("cpu")), list[torch.Tensor]()

    def examine(_networks: object, train: object, held_out: object, _ctx: object) -> dict[str, float]:
        shown.extend(batch.images for batch in (train, held_out))  # type: ignore[attr-defined]
        return {}

    monkeypatch.setattr(trainer.family, "examine", examine)
    monkeypatch.setattr(reader, "_FIRST_PAUSE_SECONDS", 0.01)
    return Examiner(trainer, source), shown


def test_the_examiner_shows_no_training_image_as_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a corrupt held-out image was trained on, so it is left out; both sets stay equally large."""
    examiner, shown = examiner_of(monkeypatch, ShakySource(), spec_of())
    examiner.measure()
    train, held_out = shown
    whole = np.setdiff1d(HELD_OUT, CORRUPT)
    assert torch.equal(held_out, images_of(models.shipped_source(LIMIT).read(whole).pixels))
    assert len(train) == len(held_out) == len(HELD_OUT) - 2


def test_the_examiner_asks_a_store_that_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hiccup at the first report does not end the run; an outage that lasts does, as one of the loader's would."""
    examiner, shown = examiner_of(monkeypatch, ShakySource(failures=2), spec_of())
    examiner.measure()
    assert len(shown) == 2
    impatient, _ = examiner_of(monkeypatch, ShakySource(failures=1), spec_of(patience_seconds=0))
    with pytest.raises(SourceError, match=r"no route; .*store_patience_seconds is 0"):
        impatient.measure()


def test_an_evaluation_compares_with_no_training_image() -> None:
    """Reference and floor hold their own images alone, without those that are corrupt."""
    real = real_images(CONFIG, SHARE, "held-out", ShakySource())
    read = np.concatenate([batch.sample_index for batch in real.reference.batches()])
    assert read.tolist() == np.setdiff1d(HELD_OUT, CORRUPT).tolist()
    floor = np.concatenate([batch.sample_index for batch in real.train.batches()])
    assert floor.tolist() == real.train.indices.tolist()
