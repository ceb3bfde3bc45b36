"""The spec of a tiny training run: a GAN of a few hundred weights on 300 real images, for two workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILY: dict[str, Any] = {
    "name": "r3gan",
    "latent_dim": 8,
    "generator": {"widths": [8, 4], "patch": 2},
    "discriminator": {"widths": [8, 4], "patch": 2},
}


def tiny_training(training: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Values of a `TrainSpec`: ``training`` beside the batch size of 32; ``parts`` replace whole parts or are added."""
    return {
        "data": {"name": "fashion-mnist", "url": "shipped", "limit": 300},
        "family": FAMILY,
        "training": {"batch_size": 32, **training},
        "resources": {"workers": 2},
        **parts,
    }
