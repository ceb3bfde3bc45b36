"""Which checkpoints are measured beside training, and when again: after a resume, after a rollback, at the end."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from genworker.training import evaluator
from genworker.training.checkpoint import key_of
from genworker.training.evaluator import Evaluator
from genworker.training.spec import TrainSpec
from tests.fakes import models


class FakeRay:
    """As much of Ray as an evaluator uses; a task ends when it is told to."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.measured: list[int] = []
        self.ended = True

    def remote(self, *args: Any) -> Any:
        """Make the task, or start it for the key that comes last."""
        if len(args) > 1:
            self.measured.append(int(args[2][-24:-12]))
        return self

    def options(self, **_options: Any) -> FakeRay:
        return self

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4}

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        del timeout
        return (refs, []) if self.ended else ([], refs)

    def get(self, _ref: Any) -> str:
        return "measured"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """In place of Ray."""
    made = FakeRay()
    monkeypatch.setattr(evaluator, "ray", made)
    return made


def spec_of(**evaluation: Any) -> TrainSpec:
    values = models.train_spec(images=96).model_dump(mode="json") | {"evaluation": evaluation}
    return TrainSpec.parse(values, origin="test")


def offer(made: Evaluator, *images: int) -> None:
    for seen in images:
        made.offer(key_of(seen))
        made.offer(key_of(seen))


def test_a_checkpoint_is_measured_once_and_those_in_between_as_asked(fake: FakeRay) -> None:
    """Every checkpoint, or the first after every so many images."""
    offer(Evaluator(spec_of(), "url", lambda _text: None), 16, 32, 48)
    assert fake.measured == [16, 32, 48]
    fake.measured.clear()
    offer(Evaluator(spec_of(every_images=40), "url", lambda _text: None), 16, 32, 48, 64, 80)
    assert fake.measured == [16, 48, 80]


def test_a_resumed_run_does_not_measure_again(fake: FakeRay) -> None:
    """What the run has an evaluation of already counts."""
    made = Evaluator(spec_of(every_images=40), "url", lambda _text: None, measured=48)
    offer(made, 48, 64, 80)
    assert fake.measured == [80]
    assert Evaluator(spec_of(), "url", lambda _text: None, measured=96).finish(key_of(96)) == []
    assert fake.measured == [80]


@pytest.mark.parametrize("every_images", [None, 16])
def test_what_a_rollback_took_back_is_measured_again(fake: FakeRay, every_images: int | None) -> None:
    """Also a checkpoint whose first version was being measured when the run went back."""
    made = Evaluator(spec_of(every_images=every_images), "url", lambda _text: None)
    offer(made, 16, 32, 48, 32, 48)
    assert fake.measured == [16, 32, 48, 48]
    fake.ended = False
    offer(made, 64, 48)
    fake.ended = True
    offer(made, 64, 80)
    assert fake.measured[4:] == [64, 64, 80]
