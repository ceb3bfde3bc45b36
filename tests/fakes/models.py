"""Small real models: networks of every family that are made in milliseconds and whose output depends on every weight.

In: a family's name and a schema. Out: configs, networks, bundles and training specs, made by the code of production.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from genworker import families
from genworker.bundle import Bundle, Lineage
from genworker.families.base import Scorer
from genworker.schema import ImageSchema
from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource
from genworker.training.spec import TrainSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from genworker.families.base import FamilyConfig, Networks

GREY = ImageSchema(channels=1, height=28, width=28, num_classes=10)
SMALL = ImageSchema(channels=3, height=7, width=6, num_classes=3, class_names=("boot", "bag", "coat"))

_STACK = {"widths": [8, 4], "blocks": 1, "group_width": 4}
# Family -> the keys that make it small. A family that is added to the registry has to be added here.
_SMALL: dict[str, dict[str, Any]] = {
    "r3gan": {"generator": _STACK, "discriminator": _STACK, "embedding_dim": 4},
    "vae": {"encoder": _STACK, "decoder": _STACK, "embedding_dim": 4},
}


def family_values(name: str, block: str = "plain", **changes: Any) -> dict[str, Any]:
    """The ``family`` part of a spec with tiny networks of ``block``s."""
    values: dict[str, Any] = {"name": name, "latent_dim": 6}
    for key, value in _SMALL[name].items():
        values[key] = value | {"block": block} if value is _STACK else value
    return values | changes


def family_config(name: str, block: str = "plain", **changes: Any) -> FamilyConfig:
    """The same, parsed."""
    return families.get(name).Config.parse(family_values(name, block, **changes), origin="test")


def shake(networks: Networks, seed: int = 0, scale: float = 0.1) -> Networks:
    """Move every weight a little, because some layers start at zero and hide what stands before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(networks.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return networks


def networks_of(config: FamilyConfig, schema: ImageSchema, seed: int = 0) -> Networks:
    """All sub-networks of a family, as if trained."""
    torch.manual_seed(seed)
    return shake(families.make(config, schema).build(), seed)


def bundle_of(
    name: str = "r3gan", schema: ImageSchema = SMALL, *, seed: int = 0, lineage: Lineage | None = None, **changes: Any
) -> Bundle:
    """A bundle of a tiny generator."""
    config = family_config(name, **changes)
    networks = networks_of(config, schema, seed)
    family = families.make(config, schema)
    served = torch.nn.ModuleDict({key: networks[key] for key in family.served})
    judges = torch.nn.ModuleDict({key: networks[key] for key in (family.scoring if isinstance(family, Scorer) else ())})
    return Bundle.pack(config, schema, served, lineage or Lineage(source="test"), judges)


def train_spec(
    name: str = "vae", *, family: Mapping[str, Any] | None = None, seed: int = 0, limit: int = 48, **training: Any
) -> TrainSpec:
    """A training spec of tiny networks on the first ``limit`` shipped images, in float32."""
    values = {
        "seed": seed,
        "data": {"name": "fashion-mnist", "url": "shipped", "limit": limit},
        "family": family_values(name, **(family or {})),
        "training": {"images": 48, "batch_size": 8, "precision": "float32", "callbacks": []} | training,
    }
    return TrainSpec.parse(values, origin="test")


@cache
def shipped_source(limit: int = 48) -> FashionMnistSource:
    """The first ``limit`` images that ship with genworker."""
    return FashionMnistSource(FashionMnistConfig(url="shipped", limit=limit))
