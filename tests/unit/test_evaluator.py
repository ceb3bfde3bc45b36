"""Which checkpoints are measured beside training, and when again: after a resume, after a rollback, at the end."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from genworker import cluster
from genworker.errors import UsageError
from genworker.metrics import MIN_IMAGES
from genworker.training import evaluator, preflight
from genworker.training.checkpoint import images_of, key_of
from genworker.training.evaluator import Evaluator, Share, share_of
from genworker.training.spec import ResourceSpec, TrainSpec
from tests.fakes import models


class FakeRay:
    """As much of Ray as an evaluator uses; a task ends when it is told to."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.measured: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.ended = True

    def remote(self, *args: Any) -> Any:
        """Make the task, or start it for the key that comes last."""
        if len(args) > 1:
            self.measured.append(images_of(args[2]))
        return self

    def options(self, **options: Any) -> FakeRay:
        self.asked.append(options)
        return self

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": 4.0, "GPU": 1.0}
        return [{"Alive": alive, "NodeID": "a", "Labels": {}, "Resources": resources} for alive in (True, False)]

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
    monkeypatch.setattr(cluster, "ray", made)
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


@pytest.mark.parametrize(
    ("nodes", "resources", "workers", "share"),
    [
        ([(2, 0)], {}, 2, Share(0, gpu=False)),
        ([(2, 0)], {}, 1, Share(1, gpu=False)),
        ([(1, 0)], {}, 2, Share(0, gpu=False)),  # a run of [1, 2] on a cluster that has not grown yet
        (
            [(4, 0), (4, 0)],
            {"cpus_per_worker": 2},
            2,
            Share(2, gpu=False),
        ),  # 1 + 3 or 2 + 2 or 0 + 4: two are always there
        ([(1, 0)] * 4, {}, 3, Share(1, gpu=False)),
        ([(64, 0)], {}, 4, Share(8, gpu=False)),
        ([(16, 2)], {"use_gpu": True, "cpus_per_worker": 4}, 2, Share(8, gpu=False)),
        ([(16, 3)], {"use_gpu": True, "cpus_per_worker": 4}, 2, Share(0, gpu=True)),
        ([(16, 2)], {"cpus_per_worker": 4}, 0, Share(8, gpu=False)),  # the run does not use GPUs
        ([], {}, 0, Share(0, gpu=False)),
    ],
)
def test_an_evaluation_takes_what_the_workers_leave(
    nodes: list[tuple[int, int]], resources: dict[str, Any], workers: int, share: Share
) -> None:
    """A GPU where one is free, else processors that some node has free however the workers lie."""
    spec = ResourceSpec.parse(resources, origin="test")
    assert share_of([{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes], spec, workers=workers) == share


def test_the_last_evaluation_takes_what_was_the_workers(fake: FakeRay) -> None:
    """One GPU for one worker: while it trains, the task makes do with processors, and at the end it has the GPU."""
    values = spec_of().model_dump(mode="json") | {"resources": {"use_gpu": True, "cpus_per_worker": 2}}
    made = Evaluator(TrainSpec.parse(values, origin="test"), "url", lambda _text: None)
    offer(made, 48)
    made.finish(key_of(96))
    assert [(options["num_cpus"], options["num_gpus"]) for options in fake.asked] == [(2, 0), (0, 1)]


def test_a_last_evaluation_that_takes_too_long_is_left_out(fake: FakeRay) -> None:
    """The message names the key that says how long a run waits."""
    events: list[str] = []
    fake.ended = False
    Evaluator(spec_of(final_wait_seconds=5), "url", events.append).finish(key_of(96))
    assert events == [
        f"the evaluation of {key_of(96)} takes longer than evaluation.final_wait_seconds, 5, and is left out"
    ]


def test_an_evaluation_that_cannot_work_is_told_before_the_start() -> None:
    """Not at every checkpoint: the number needs labels that are not there, or the data has no test split."""
    source = models.shipped_source()
    values = spec_of(metric="label_accuracy", num_samples=64).model_dump(mode="json")
    preflight.check(TrainSpec.parse(values, origin="test"), source)
    values["family"] |= {"conditional": False}
    with pytest.raises(UsageError, match=r"metric 'label-accuracy' needs .*labels.*: the generator is not conditional"):
        preflight.check(TrainSpec.parse(values, origin="test"), source)


def test_images_that_are_too_few_to_compare_with_are_no_evaluation() -> None:
    """It is said once, with what to change, and training goes on without."""
    source = models.shipped_source()
    spec = spec_of(num_samples=64)
    share = MIN_IMAGES / len(source)
    for holdout, told in ((2 * share, False), (0.5 * share, True), (0.0, True)):
        training = spec.training.model_copy(update={"holdout_share": holdout})
        problem = preflight.too_few_to_compare(spec.model_copy(update={"training": training}), source)
        assert (problem is not None) == told
    assert problem is not None
    assert "holds out 0, and 20 are the least to compare with" in problem
    assert preflight.too_few_to_compare(spec_of(num_samples=0), source) is None
