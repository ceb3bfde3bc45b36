"""A tiny training run on real images, and what the tests read of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch

from genworker import bundle as bundles
from genworker.stores import open_store
from genworker.training import record
from genworker.training.spec import TrainSpec
from tests.fakes.training import FAMILY, tiny_training

if TYPE_CHECKING:
    import torch

IMAGES, CHECKPOINT_EVERY, REPORT_EVERY = 2_048, 256, 128
# Alarms about speed tell of the machine that the tests share with others, not of the run; test_watchdog.py raises them.
ANY_SPEED = {"min_speed_share": 1e-9, "max_rank_lag": 1e9}


def spec_for(**changes: object) -> TrainSpec:
    """A run of 64 steps of tiny networks on a few real images, in plain float32; ``changes`` replace whole parts."""
    values = tiny_training(
        {
            "images": IMAGES,
            "precision": "float32",
            "report_every_images": REPORT_EVERY,
            "checkpoint_every_images": CHECKPOINT_EVERY,
            "callbacks": [],
        },
        seed=1,
        family=FAMILY | {"embedding_dim": 4},
        evaluation={"num_samples": 0},
        watchdog=ANY_SPEED,
    )
    return TrainSpec.parse(values | changes, origin="test")


def weights_of(url: str) -> dict[str, torch.Tensor]:
    """The weights of a run's bundle."""
    return safetensors.torch.load(open_store(url).get(record.BUNDLE_PREFIX + bundles.WEIGHTS_KEY))
