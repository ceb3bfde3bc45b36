"""A bundle of an untrained generator, small enough to make thousands of samples in a second."""

from __future__ import annotations

import torch

from genworker import families
from genworker.bundle import Bundle, Lineage
from genworker.families.r3gan import R3GANConfig
from genworker.schema import ImageSchema
from genworker.stores import open_store

CONFIG = {
    "latent_dim": 8,
    "embedding_dim": 4,
    "generator": {"widths": [8, 4], "patch": 2},
    "discriminator": {"widths": [8, 4], "patch": 2},
}


def save_bundle(url: str, *, num_classes: int = 10, seed: int = 0) -> str:
    """Save a bundle to ``url`` and return the URL; ``num_classes`` 0 makes an unconditional model."""
    schema = ImageSchema(channels=1, height=28, width=28, num_classes=num_classes)
    config = R3GANConfig.parse(CONFIG, origin="tiny bundle")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = families.make(config, schema).build()
    served = torch.nn.ModuleDict({"generator": networks["generator"]})
    Bundle.pack(config, schema, served, Lineage()).save(open_store(url))
    return url
