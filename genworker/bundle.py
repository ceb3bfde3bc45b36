"""The bundle: a trained generator and nothing else, the hinge between training and bulk work.

Two objects under one URL: ``weights.safetensors`` and, written last, ``bundle.json`` (family, config, schema, digest of the
weights, lineage). The digest of a bundle covers what decides its samples, not its lineage. Nothing is ever unpickled: a
bundle from a stranger can hold wrong numbers but no code.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import Field, ValidationError
from torch import nn

from genworker import families
from genworker.config import Spec, digest_of
from genworker.errors import BundleError, ObjectMissingError
from genworker.families import AnyFamilyConfig
from genworker.families.base import FamilyConfig, Generator
from genworker.schema import ImageSchema
from genworker.stores.base import Store

WEIGHTS_KEY = "weights.safetensors"
BUNDLE_KEY = "bundle.json"
MAX_JSON_BYTES = 16 * 2**20


class Lineage(Spec):
    """Where a bundle comes from; for people, never part of the digest."""

    source: str = Field("", description="name and URL of the training data")
    source_digest: str = ""
    spec: dict[str, Any] = Field(default_factory=dict, description="the training spec, resolved")
    images_seen: Annotated[int, Field(ge=0)] = 0
    metrics: dict[str, float] = Field(default_factory=dict, description="last metrics of the run")
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = Field("", description="UTC, ISO 8601")


class BundleInfo(Spec):
    """bundle.json."""

    version: Literal[1] = 1
    family: AnyFamilyConfig
    image_schema: ImageSchema
    networks: tuple[str, ...]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weights_bytes: Annotated[int, Field(ge=1)]
    lineage: Lineage = Lineage()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that decides what the bundle computes."""
        return digest_of(self.model_dump(mode="json", exclude={"lineage"}))


class Bundle:
    """A bundle in memory: ``info`` and the bytes of its weights, checked against each other.

    ``origin`` names the weights in messages.
    """

    def __init__(self, info: BundleInfo, weights: bytes, origin: str = WEIGHTS_KEY) -> None:
        self.info = info
        self._weights = weights
        self._origin = origin

    @property
    def digest(self) -> str:
        """See `BundleInfo.digest`."""
        return self.info.digest

    @classmethod
    def pack(cls, config: FamilyConfig, schema: ImageSchema, networks: nn.ModuleDict, lineage: Lineage) -> Bundle:
        """Make a bundle of trained sub-networks; equal weights give equal bytes."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in networks.state_dict().items()}
        weights = safetensors.torch.save(tensors)
        info = BundleInfo(
            family=config,
            image_schema=schema,
            networks=tuple(networks.keys()),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            weights_bytes=len(weights),
            lineage=lineage,
        )
        return cls(info, weights)

    def networks(self) -> nn.ModuleDict:
        """Build the sub-networks with their weights, in evaluation mode.

        Raises:
            BundleError: the weights do not fit what the family builds from its config.
        """
        family = families.make(self.info.family, self.info.image_schema)
        name = self.info.family.name
        if sorted(self.info.networks) != sorted(family.served):
            raise BundleError(
                f"{self._origin}: {BUNDLE_KEY} beside it says networks {list(self.info.networks)}, a bundle of {name} "
                f"has {list(family.served)}; it was damaged or made by another version of genworker"
            )
        built = family.build()
        modules = nn.ModuleDict({network: built[network] for network in family.served})
        try:
            modules.load_state_dict(safetensors.torch.load(self._weights))
        except (RuntimeError, KeyError, safetensors.SafetensorError) as err:
            raise BundleError(
                f"{self._origin}: does not fit a {name} of the config beside it; it was damaged or made by another "
                f"version of genworker: {textwrap.shorten(str(err), 500)}"
            ) from err
        return modules.requires_grad_(False).eval()

    def generator(self) -> Generator:
        """The generating network, on the CPU, float32."""
        family = families.make(self.info.family, self.info.image_schema)
        return family.generator(self.networks())

    def save(self, store: Store, prefix: str = "") -> None:
        """Write the bundle below ``prefix``: weights first, then the JSON that vouches for them. Both are replaced."""
        store.put(prefix + WEIGHTS_KEY, self._weights, overwrite=True)
        store.put(prefix + BUNDLE_KEY, self.info.model_dump_json(indent=2).encode(), overwrite=True)


def load_info(store: Store, prefix: str = "") -> BundleInfo:
    """Read and validate bundle.json below ``prefix``. Raises BundleError."""
    where = f"{store.url}/{prefix}{BUNDLE_KEY}"
    try:
        head = store.head(prefix + BUNDLE_KEY)
        if head.size > MAX_JSON_BYTES:
            raise BundleError(f"{where}: {head.size} bytes; a bundle.json has at most {MAX_JSON_BYTES}")
        data = json.loads(store.get(prefix + BUNDLE_KEY))
    except ObjectMissingError as err:
        raise BundleError(
            f"{where}: there is no bundle here; name the folder 'bundle' below the URL that `genworker train` was given"
        ) from err
    except (UnicodeDecodeError, ValueError, RecursionError) as err:
        raise BundleError(f"{where}: is not JSON: {err}") from err
    if not isinstance(data, dict) or data.get("version") != 1:
        version = data.get("version") if isinstance(data, dict) else None
        raise BundleError(f"{where}: version {version!r}; this genworker reads version 1")
    try:
        return BundleInfo.model_validate(data)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{where}: {key}: {first['msg']}; known families: {', '.join(families.FAMILIES)}") from err


def load(store: Store, prefix: str = "") -> Bundle:
    """Read a bundle and check its weights against its JSON. Raises BundleError."""
    info = load_info(store, prefix)
    where = f"{store.url}/{prefix}{WEIGHTS_KEY}"
    try:
        weights = store.get(prefix + WEIGHTS_KEY)
    except ObjectMissingError as err:
        raise BundleError(
            f"{where}: missing, though {BUNDLE_KEY} is there; the bundle was damaged, copy it again"
        ) from err
    seen = hashlib.sha256(weights).hexdigest()
    if seen != info.weights_sha256:
        raise BundleError(f"{where}: SHA-256 is {seen}, {BUNDLE_KEY} says {info.weights_sha256}; copy the bundle again")
    return Bundle(info, weights, where)
