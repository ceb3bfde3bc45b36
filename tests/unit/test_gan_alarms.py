"""A GAN's bands at work: small real trainings, one healthy and one lost, and what the watchdog says of them."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import torch

from genworker import families
from genworker.sources.arrays import ArraySource
from genworker.sources.fashion_mnist import FashionMnistConfig
from genworker.stores import open_store
from genworker.training import loop
from tests.fakes import models

pytestmark = pytest.mark.slow

STEPS, BATCH = 140, 32
_STACK = {"widths": [32, 16], "blocks": 0, "patch": 2}


class Blobs(ArraySource):
    """512 grey pictures of 8x8 pixels, each with one soft spot somewhere: a set that a tiny GAN learns in seconds."""

    Config = FashionMnistConfig

    def __init__(self) -> None:
        y, x = np.mgrid[:8, :8]
        random = np.random.Generator(np.random.Philox(0))
        centre, width = random.uniform(1, 6, (512, 2)), random.uniform(1, 2, (512, 1, 1))
        distance = (x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2
        pixels = (np.exp(-distance / width**2) * 255).astype(np.uint8)[..., None]
        self._hold(pixels, np.zeros(512, np.int64), (), 1)


def alarms_of(**family: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The alarms about the family's bands in a run, and the run's reports."""
    values = {
        "generator": _STACK,
        "discriminator": _STACK,
        "conditional": False,
        "lr": {"start": 2e-3, "end": 5e-4},
        "gamma": {"start": 1.0, "end": 0.2},
    }
    spec = models.train_spec(
        "r3gan",
        family=values | family,
        images=STEPS * BATCH,
        batch_size=BATCH,
        report_every_images=10 * BATCH,
        callbacks=(),
    )
    events: list[str] = []
    reports: list[dict[str, Any]] = []
    hooks = loop.Hooks(on_report=reports.append, on_event=events.append)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    loop.train(spec, Blobs(), store, rank=0, world_size=1, device=torch.device("cpu"), hooks=hooks)
    # A busy machine may raise alarms about speed; they are not the subject.
    metrics = {band.metric for band in families.make(spec.family, Blobs().schema).bands()}
    return [text for text in events if any(f": {metric} is" in text for metric in metrics)], reports


@pytest.mark.parametrize("loss", ["relativistic", "hinge", "wasserstein"])
def test_a_healthy_run_raises_no_alarm(loss: str) -> None:
    """The recipe's game ends balanced: pairs are told apart little better than by chance, and no band is left."""
    alarms, reports = alarms_of(loss=loss)
    assert alarms == []
    assert reports[-1]["discriminator.pair_sign"] < 0.9
    assert abs(reports[-1]["discriminator.penalty_balance"]) < 0.2


@pytest.mark.parametrize(
    ("game", "metric"),
    [
        ({"r1": False, "r2": False}, "generator.loss"),
        ({"loss": "hinge", "r1": False, "r2": False}, "generator.loss"),
        ({"loss": "wasserstein", "gamma": 0.01}, "discriminator.penalty"),
    ],
)
def test_a_discriminator_with_little_penalty_and_twenty_times_as_fast_raises_an_alarm(
    game: dict[str, Any], metric: str
) -> None:
    """It runs away from the generator, and the alarm says what to change."""
    alarms, _ = alarms_of(**game, discriminator_lr_scale=20.0)
    assert any(f"{metric} is" in text and "raise family.gamma" in text for text in alarms)
