"""What two workers agree on, and what is said of one that the other waits for, in a real process group.

Run as a program, this file is one of the two: it writes what each scenario gave, which the tests then look at.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource
from genworker.stores import open_store
from genworker.training import loop, step
from genworker.training.hooks import Hooks
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.resume import resume
from genworker.training.step import Trainer
from tests.fakes import models
from tests.fakes.losses import wrap_losses
from tests.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.families.base import Losses
    from genworker.schema import Int64Array, SampleBatch
    from genworker.stores import Store
    from genworker.training.spec import TrainSpec
    from genworker.training.step import Context

pytestmark = pytest.mark.slow

SHIPPED = models.shipped_source()
CPU = torch.device("cpu")
PAUSE_SECONDS = 1.5  # far more than a step of these networks takes, also on a busy machine


class SlowSource(FashionMnistSource):
    """The shipped images; the first ones come late."""

    pause = PAUSE_SECONDS

    def read(self, indices: Int64Array) -> SampleBatch:
        pause, self.pause = self.pause, 0.0
        time.sleep(pause)
        return super().read(indices)


def spec_of(images: int = 8) -> TrainSpec:
    """A run of steps of eight images and one report, whose watchdog has no patience."""
    values = models.train_spec(images=images, report_every_images=images).model_dump(mode="json")
    return type(models.train_spec()).parse(values | {"watchdog": {"patience": 1}}, origin="test")


def new_store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def train(rank: int, source: FashionMnistSource, images: int = 8, **hooks: Any) -> dict[str, Any]:
    """Train as one of two; what rank 0 reports last, and the events."""
    events: list[str] = []
    result = loop.train(
        spec_of(images=images),
        source,
        new_store(),
        rank=rank,
        world_size=2,
        device=CPU,
        hooks=Hooks(on_event=events.append, **hooks),
    )
    return {"metrics": result.metrics, "events": events}


def infinite_loss(rank: int) -> dict[str, Any]:
    """One step in which the loss of rank 1 is infinite, though its gradient is not."""

    def around(compute: Callable[[], Losses], _ctx: Context) -> Losses:
        losses = compute()
        return losses | {"loss": losses["loss"] + math.inf} if rank else losses

    with pytest.MonkeyPatch.context() as monkeypatch:
        wrap_losses(monkeypatch, "vae", around)
        trainer = Trainer(spec_of(), SHIPPED, rank, 2, CPU)
        before = {name: value.clone() for name, value in trainer.networks.state_dict().items()}
        with Loader(SHIPPED, batch_size=8, seed=0, rank=rank, world_size=2, prefetch=0) as loader:
            trainer.step([next(loader)], Meter())
    moved = [name for name, value in trainer.networks.state_dict().items() if not torch.equal(value, before[name])]
    return {"nonfinite_steps": trainer.state.counters.nonfinite_steps, "moved": moved}


def slow_to_compute(rank: int) -> dict[str, Any]:
    """A run in which rank 1 computes for long."""

    def around(compute: Callable[[], Losses], _ctx: Context) -> Losses:
        time.sleep(PAUSE_SECONDS * rank)
        return compute()

    with pytest.MonkeyPatch.context() as monkeypatch:
        wrap_losses(monkeypatch, "vae", around)
        return train(rank, SHIPPED)


def slow_to_read(rank: int) -> dict[str, Any]:
    """A run in which rank 1 waits for its data."""
    return train(rank, SlowSource(FashionMnistConfig(url="shipped", limit=48)) if rank else SHIPPED)


def question(rank: int) -> list[int]:
    """A run of four steps in which rank 1 has a question before the second: the steps after which this rank was to ask."""
    steps, asked = itertools.count(), list[int]()
    before: list[int] = []

    def should_ask() -> bool:
        before.append(next(steps))
        return rank == 1 and before[-1] == 1

    train(rank, SHIPPED, images=32, should_ask=should_ask, ask=lambda: asked.append(before[-1]))
    return asked


def precision(rank: int) -> str:
    """What two processors of different kinds compute in, where the spec leaves it to them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fastest = torch.float32 if rank else torch.bfloat16
        monkeypatch.setattr(step, "resolve_precision", lambda _precision, _device: fastest)
        trainer = Trainer(spec_of(), SHIPPED, rank, 2, CPU)
    resume(trainer, new_store(), lambda _text: None)
    return str(trainer.dtype)


SCENARIOS = (infinite_loss, slow_to_compute, slow_to_read, question, precision)


def work(rank: int, folder: Path) -> None:
    """Take part in every scenario, and write what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "group").as_uri(), rank=rank, world_size=2)
    found = {scenario.__name__: scenario(rank) for scenario in SCENARIOS}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each scenario gave, by rank."""
    folder = tmp_path_factory.mktemp("two-workers")
    run_ranks(__file__, folder, 2)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_a_loss_that_is_not_finite_on_one_worker_is_skipped_by_both(found: list[dict[str, Any]]) -> None:
    """Both count the step and move nothing, so that their weights stay the same."""
    assert [one["infinite_loss"] for one in found] == [{"nonfinite_steps": 1, "moved": []}] * 2


def test_a_worker_that_computes_slowly_is_named_though_the_other_waits_in_its_loss(found: list[dict[str, Any]]) -> None:
    """What the fast worker waits for the slow one in the middle of a loss is not taken for computing."""
    assert any("rank 1 takes" in event for event in found[0]["slow_to_compute"]["events"])


def test_a_worker_that_waits_for_data_is_named(found: list[dict[str, Any]]) -> None:
    """Reports hold the mean and the longest wait for data of all workers, and the lag is told."""
    first = found[0]["slow_to_read"]
    assert any("rank 1 takes" in event for event in first["events"])
    assert first["metrics"]["worst_data_wait_share"] > 1.5 * first["metrics"]["data_wait_share"] > 0


def test_a_question_of_one_worker_is_asked_by_both_after_the_same_step(found: list[dict[str, Any]]) -> None:
    """What only all can ask together, all ask equally often."""
    assert [one["question"] for one in found] == [[1], [1]]


def test_all_workers_compute_in_the_precision_of_the_first(found: list[dict[str, Any]]) -> None:
    """A gradient is never summed over parts that were computed in different precisions."""
    assert [one["precision"] for one in found] == ["torch.bfloat16"] * 2


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
