"""What moves over a run has the value of its schedule in the step that is at that place of the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from genworker.families.base import Cosine, FamilyConfig
from genworker.training.ema import WeightAverage
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.step import Trainer
from tests.fakes import models

IMAGES, BATCH = 64, 8


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine, written down once more."""
    return (start + end) / 2 + (start - end) / 2 * math.cos(math.pi * progress)


def trainer_at(images_seen: int, **family: Any) -> Trainer:
    """A GAN's trainer in the middle of a run of 64 images, with every weight moved away from where it starts."""
    spec = models.train_spec("r3gan", family=family, images=IMAGES, batch_size=BATCH)
    trainer = Trainer(spec, models.shipped_source(), 0, 1, torch.device("cpu"))
    models.shake(trainer.networks)
    trainer.state.counters.images_seen = images_seen
    return trainer


def step(trainer: Trainer) -> dict[str, float]:
    """Make one step; returns what it would report."""
    meter = Meter()
    with Loader(
        models.shipped_source(), batch_size=BATCH, seed=0, start=trainer.state.counters.images_seen, prefetch=0
    ) as loader:
        trainer.step([next(loader)], meter)
    return meter.averages()


@pytest.mark.parametrize("images_seen", [0, 16, 32, 56])
def test_adam_moves_by_the_schedules_of_its_step(images_seen: int) -> None:
    """When each optimizer steps, its learning rate and betas are those of the share of the run before the step."""
    trainer = trainer_at(
        images_seen,
        lr={"start": 1e-2, "end": 1e-3},
        beta1=0.25,
        beta2={"start": 0.9, "end": 0.99},
        discriminator_lr_scale=4.0,
    )
    used: dict[str, tuple[float, float, float]] = {}
    for name, optimizer in trainer.optimizers.items():

        def note(optimizer: torch.optim.Optimizer, *_: Any, name: str = name) -> None:
            (group,) = optimizer.param_groups
            used[name] = group["lr"], *group["betas"]

        optimizer.register_step_pre_hook(note)
    step(trainer)
    lr = cosine(1e-2, 1e-3, images_seen / IMAGES)
    beta2 = cosine(0.9, 0.99, images_seen / IMAGES)
    assert set(used) == {"discriminator", "generator"}
    assert used["discriminator"] == pytest.approx((4.0 * lr, 0.25, beta2), rel=1e-12)
    assert used["generator"] == pytest.approx((lr, 0.25, beta2), rel=1e-12)


@pytest.mark.parametrize(("r1", "r2"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("images_seen", [0, 16, 56])
def test_the_discriminator_s_loss_is_its_parts(images_seen: int, r1: bool, r2: bool) -> None:
    """It is the adversarial loss plus half of gamma, as scheduled, times the penalties that are switched on."""
    reported = step(trainer_at(images_seen, gamma={"start": 8.0, "end": 0.5}, r1=r1, r2=r2))
    gamma = cosine(8.0, 0.5, images_seen / IMAGES)
    penalties = r1 * reported["discriminator.r1"] + r2 * reported["discriminator.r2"]
    assert penalties > 0.1  # so that a wrong gamma shows
    assert reported["discriminator.loss"] == pytest.approx(
        reported["discriminator.adversarial"] + gamma / 2 * penalties, rel=1e-5
    )


@pytest.mark.parametrize(
    ("rampup", "images_seen", "halflife"),
    [
        (None, 0, 0.0),  # a schedule from 0: the first step's weights are taken as they are
        (None, 16, cosine(0.0, 40.0, 0.25)),
        (None, 56, cosine(0.0, 40.0, 0.875)),
        (0.5, 56, 32.0),  # half of the 64 images after the step, shorter than the schedule's 38.5
        (10.0, 16, cosine(0.0, 40.0, 0.25)),  # shorter than 240
    ],
)
def test_the_average_moves_by_its_half_life(rampup: float | None, images_seen: int, halflife: float) -> None:
    """After a step the average keeps 0.5^(batch / half-life) of what it was; the ramp-up is a share of all images seen."""
    trainer = trainer_at(images_seen, ema_halflife_images={"start": 0, "end": 40}, ema_rampup=rampup)
    before = [parameter.clone() for parameter in trainer.average.networks.parameters()]
    step(trainer)
    keep = 0.5 ** (BATCH / halflife) if halflife else 0.0
    now = list(trainer.networks["generator"].parameters())
    assert any((old - new).abs().max() > 0.05 for old, new in zip(before, now, strict=True))
    for old, new, average in zip(before, now, trainer.average.networks.parameters(), strict=True):
        torch.testing.assert_close(average, keep * old + (1 - keep) * new)


def test_an_average_worked_out_by_hand() -> None:
    """Weights 1, 2 and 4 after 0: with a half-life of one batch the average is 1/2, 5/4, 21/8, and never moves a weight."""
    weight = nn.Linear(1, 1, bias=False)
    other = nn.Linear(1, 1)
    config = FamilyConfig(
        name="any", lr=Cosine(start=1, end=1), ema_halflife_images=Cosine(start=10, end=10), ema_rampup=None
    )
    nn.init.zeros_(weight.weight)
    average = WeightAverage(nn.ModuleDict({"served": weight, "other": other}), ("served",), config)
    assert set(average.networks) == {"served"}
    found = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(weight.weight, value)
        average.update(batch_size=10, images_seen=10, progress=0.0)
        found.append(next(average.networks.parameters()).item())
        assert weight.weight.item() == value
    assert found == [1 / 2, 5 / 4, 21 / 8]
