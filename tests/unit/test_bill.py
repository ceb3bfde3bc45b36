"""What a training run says of its cost: of workers that come and go, early on and at the end."""

from __future__ import annotations

import contextlib
from typing import Any

from genworker.training.bill import Bill
from genworker.training.hooks import News
from genworker.training.spec import TrainSpec
from tests.fakes import models


def spec_of(**resources: Any) -> TrainSpec:
    values = models.train_spec(images=6_400).model_dump(mode="json") | {"resources": resources}
    return TrainSpec.parse(values, origin="test")


def told(spec: TrainSpec) -> list[News]:
    """The events of a run of a hundred seconds: two workers, then none, then one."""
    now, events = [0.0], list[Any]()

    def at(seconds: float, num_workers: int, images_seen: int) -> None:
        now[0] = seconds
        bill.look(num_workers, {"images_seen": images_seen, "images_per_second": 32.0} if images_seen else {})

    with Bill(spec, events.append, clock=lambda: now[0]) as bill:
        at(10, 2, 0)
        at(20, 2, 640)
        at(30, 2, 1_280)
        at(40, 2, 1_280)
        at(40, 0, 1_280)
        at(70, 1, 1_280)
        at(100, 0, 2_560)
        now[0] = 200.0  # the last evaluation is not the workers' time
    return events


def test_a_run_is_priced_early_on_and_at_the_end() -> None:
    """By the time of workers that were there, and by the speed once the start is behind."""
    estimate, cost = told(spec_of(cpus_per_worker=2, price_per_hour=1.8))
    # 40 worker seconds so far, and 160 s of two workers to come; a worker has two CPUs.
    assert estimate == "estimate: 5,120 more images in about 160 s; this start will cost about 0.3600"
    assert (estimate.kind, estimate.level, estimate.facts) == ("estimate", "info", {"cost": 0.36, "eta_seconds": 160.0})
    assert cost == "cost of this start: 0.0900, 0.03 hours of workers"
    assert (cost.kind, cost.level, cost.facts) == ("cost", "info", {"cost": 0.09, "worker_seconds": 90.0})


def test_the_price_is_that_of_gpus_where_they_are_used() -> None:
    estimate, cost = told(spec_of(use_gpu=True, cpus_per_worker=8, price_per_hour=1.8))
    assert (estimate.facts["cost"], cost.facts["cost"]) == (0.18, 0.045)


def test_an_error_has_its_price_too() -> None:
    events: list[str] = []
    with contextlib.suppress(RuntimeError), Bill(spec_of(price_per_hour=1.0), events.append):
        raise RuntimeError
    assert events == ["cost of this start: 0.0000, 0.00 hours of workers"]


def test_without_a_price_nothing_is_told() -> None:
    assert told(spec_of()) == []


def test_a_price_makes_no_other_run() -> None:
    """A run can be resumed with another price."""
    assert spec_of(price_per_hour=1.0).spec_id == spec_of().spec_id
