"""Model families by name. Adding one: a module with a class like `R3GAN`, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genworker.config import union_by_name
from genworker.errors import UsageError
from genworker.families.base import Family, FamilyConfig
from genworker.families.r3gan import R3GAN
from genworker.families.vae import VAE
from genworker.schema import ImageSchema

FAMILIES: dict[str, type[Family]] = {
    "r3gan": R3GAN,
    "vae": VAE,
}

# Goes up with every change after which the networks of a stored bundle compute other bits: a plan holds it, so that no dataset
# is made by both. 2: features are laid out channels-last, and the layers next to the image work on rearranged pixels.
NETWORKS_VERSION = "2"

if TYPE_CHECKING:
    AnyFamilyConfig = FamilyConfig
else:
    AnyFamilyConfig = union_by_name(family.Config for family in FAMILIES.values())


def get(name: str) -> type[Family]:
    """The family called ``name``; raises UsageError with the known names."""
    if name not in FAMILIES:
        raise UsageError(f"family {name!r}: not known; known families: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def make(config: FamilyConfig, schema: ImageSchema) -> Family:
    """The family that ``config`` belongs to, for samples of ``schema``."""
    return get(config.name)(config, schema)
