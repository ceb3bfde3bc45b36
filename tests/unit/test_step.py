"""One training step of one worker: what is skipped, and that it is counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from genworker import families
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.step import Trainer
from tests.fakes import models
from tests.fakes.losses import wrap_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.families.base import Losses
    from genworker.training.step import Context

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_moves_nothing_though_its_gradient_is(
    monkeypatch: pytest.MonkeyPatch, name: str, micro_batch_size: int | None, wrong: float
) -> None:
    """An infinite constant in the loss of one part of a batch leaves the gradient finite; the steps are skipped and counted."""

    def around(compute: Callable[[], Losses], ctx: Context) -> Losses:
        losses = compute()
        return losses if ctx.first_draw else losses | {"loss": losses["loss"] + wrong}

    wrap_losses(monkeypatch, name, around)
    trainer = Trainer(models.train_spec(name, micro_batch_size=micro_batch_size), models.shipped_source(), 0, 1, CPU)
    before = {key: value.clone() for key, value in trainer.networks.state_dict().items()}
    with Loader(models.shipped_source(), batch_size=micro_batch_size or 8, seed=0, prefetch=0) as loader:
        batches = [next(loader) for _ in range(8 // (micro_batch_size or 8))]
    trainer.compute_gradients(trainer.phases[0], batches, Meter())
    gradients = [parameter.grad for parameter in trainer.networks.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    trainer.step(batches, Meter())
    assert trainer.state.counters.nonfinite_steps == sum(phase.every == 1 for phase in trainer.phases)
    assert not any(optimizer.state_dict()["state"] for optimizer in trainer.optimizers.values())
    assert all(torch.equal(value, before[key]) for key, value in trainer.networks.state_dict().items())
