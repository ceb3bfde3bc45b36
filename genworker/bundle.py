"""The bundle: a trained generator and nothing else, the hinge between training and bulk work.

Under one URL: ``weights.safetensors``, ``scorer.safetensors`` (the discriminator, where the family can score; loaded only when
asked for) and, written last, ``bundle.json`` (family, config, schema, digests of the weights, lineage). The digest of a bundle
covers what decides its samples: not its lineage, and not its scorer. Nothing is ever unpickled: a
bundle from a stranger can hold wrong numbers but no code.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from torch import nn

from genworker import families
from genworker.config import Spec, digest_of, first_problem
from genworker.errors import BundleError, ObjectMissingError
from genworker.families import AnyFamilyConfig
from genworker.families.base import FamilyConfig, Generator, Scorer
from genworker.families.weights import from_bytes, to_bytes
from genworker.metrics.cards import Measured
from genworker.schema import ImageSchema
from genworker.stores.base import Store, get_at_most

WEIGHTS_KEY = "weights.safetensors"
SCORER_KEY = "scorer.safetensors"
BUNDLE_KEY = "bundle.json"
MAX_JSON_BYTES = 16 * 2**20


class Lineage(Spec):
    """Where a bundle comes from; for people, never part of the digest."""

    source: str = Field("", description="name and URL of the training data")
    source_digest: str = ""
    spec: dict[str, Any] = Field(default_factory=dict, description="the training spec, resolved")
    images_seen: Annotated[int, Field(ge=0)] = 0
    metrics: dict[str, float] = Field(default_factory=dict, description="of training: the last report of the run")
    evaluation: Measured | None = Field(None, description="of exactly these weights, where the run has one")
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = Field("", description="UTC, ISO 8601")


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NumBytes = Annotated[int, Field(ge=1, lt=2**48)]


class ScorerInfo(Spec):
    """The object beside the weights that holds what scores."""

    networks: tuple[str, ...]
    sha256: Sha256
    num_bytes: NumBytes


class BundleInfo(Spec):
    """bundle.json."""

    version: Literal[1] = 1
    family: AnyFamilyConfig
    image_schema: ImageSchema
    networks: tuple[str, ...]
    weights_sha256: Sha256
    weights_bytes: NumBytes
    scorer: ScorerInfo | None = None
    lineage: Lineage = Lineage()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that decides what the bundle computes."""
        return digest_of(self.model_dump(mode="json", exclude={"lineage", "scorer"}))

    def evaluated(self, evaluation: Measured) -> BundleInfo:
        """The same bundle, whose lineage holds ``evaluation``."""
        return self.model_copy(update={"lineage": self.lineage.model_copy(update={"evaluation": evaluation})})


class Bundle:
    """A bundle in memory: ``info`` and the bytes of its weights, checked against each other.

    ``scorer`` holds the bytes of what scores, or None where there is none or it was not asked for. ``origin`` names the weights
    in messages.
    """

    def __init__(
        self, info: BundleInfo, weights: bytes, origin: str = WEIGHTS_KEY, scorer: bytes | None = None
    ) -> None:
        self.info = info
        self._weights = weights
        self._scorer = scorer
        self._origin = origin

    @property
    def digest(self) -> str:
        """See `BundleInfo.digest`."""
        return self.info.digest

    @property
    def has_scorer(self) -> bool:
        """Whether the weights of what scores are loaded."""
        return self._scorer is not None

    @classmethod
    def pack(
        cls,
        config: FamilyConfig,
        schema: ImageSchema,
        networks: nn.ModuleDict,
        lineage: Lineage,
        scoring: nn.ModuleDict | None = None,
    ) -> Bundle:
        """Make a bundle of trained sub-networks, ``scoring`` those that score; equal weights give equal bytes."""
        weights = to_bytes(networks)
        scorer = to_bytes(scoring) if scoring else None
        info = BundleInfo(
            family=config,
            image_schema=schema,
            networks=tuple(networks.keys()),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            weights_bytes=len(weights),
            scorer=None
            if scoring is None or scorer is None
            else ScorerInfo(
                networks=tuple(scoring.keys()), sha256=hashlib.sha256(scorer).hexdigest(), num_bytes=len(scorer)
            ),
            lineage=lineage,
        )
        return cls(info, weights, scorer=scorer)

    def networks(self) -> nn.ModuleDict:
        """Build the sub-networks with their weights, in evaluation mode.

        Raises:
            BundleError: the weights do not fit what the family builds from its config, or are not finite.
        """
        family = families.make(self.info.family, self.info.image_schema)
        name = self.info.family.name
        if sorted(self.info.networks) != sorted(family.served):
            raise BundleError(
                f"{self._origin}: {BUNDLE_KEY} beside it says networks {list(self.info.networks)}, a bundle of {name} "
                f"has {list(family.served)}; it was damaged or made by another version of genworker"
            )
        return from_bytes(family, name, family.served, self._weights, self._origin)

    def generator(self) -> Generator:
        """The generating network, on the CPU, float32."""
        family = families.make(self.info.family, self.info.image_schema)
        return family.generator(self.networks())

    def scorer(self) -> tuple[Scorer, nn.ModuleDict]:
        """The family as a `Scorer`, and the sub-networks that it takes, in evaluation mode.

        Raises:
            BundleError: the bundle holds none, it was loaded without, or the weights do not fit what the family builds, or
                are not finite.
        """
        family = families.make(self.info.family, self.info.image_schema)
        info = self.info.scorer
        if info is None or self._scorer is None or not isinstance(family, Scorer):
            raise BundleError(f"{self._origin}: no weights to score with are loaded beside it")
        if sorted(info.networks) != sorted(family.scoring):
            raise BundleError(
                f"{self._origin}: {BUNDLE_KEY} beside it says that {list(info.networks)} score, in this "
                f"{self.info.family.name} it is {list(family.scoring)}; it was damaged or made by another version of genworker"
            )
        origin = self._origin.removesuffix(WEIGHTS_KEY) + SCORER_KEY
        return family, from_bytes(family, self.info.family.name, family.scoring, self._scorer, origin)

    def check(self) -> None:
        """Build whatever is loaded, once, so that weights which `networks` or `scorer` would refuse are refused here."""
        self.networks()
        if self.has_scorer:
            self.scorer()

    def save(self, store: Store, prefix: str = "") -> None:
        """Write the bundle below ``prefix``: weights first, then the JSON that vouches for them. All are replaced.

        A bundle that was loaded without its scorer is saved as one that has none.
        """
        info = self.info if self._scorer is not None else self.info.model_copy(update={"scorer": None})
        store.put(prefix + WEIGHTS_KEY, self._weights, overwrite=True)
        if self._scorer is not None:
            store.put(prefix + SCORER_KEY, self._scorer, overwrite=True)
        save_info(info, store, prefix)


def save_info(info: BundleInfo, store: Store, prefix: str = "") -> None:
    """Replace bundle.json below ``prefix``; the weights that it vouches for have to be there."""
    store.put(prefix + BUNDLE_KEY, info.model_dump_json(indent=2).encode(), overwrite=True)


def load_info(store: Store, prefix: str = "") -> BundleInfo:
    """Read and validate bundle.json below ``prefix``. Raises BundleError."""
    where = f"{store.url}/{prefix}{BUNDLE_KEY}"
    try:
        data = json.loads(get_at_most(store, prefix + BUNDLE_KEY, MAX_JSON_BYTES, BundleError))
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
        info = BundleInfo.model_validate(data)
        _ = info.digest
    except ValidationError as err:
        raise BundleError(f"{where}: {first_problem(err)}; known families: {', '.join(families.FAMILIES)}") from err
    except ValueError as err:  # JSON can say half of a surrogate pair, and Python's also NaN
        raise BundleError(f"{where}: there is no digest of what it holds: {err}") from err
    return info


def load(store: Store, prefix: str = "", *, with_scorer: bool = False) -> Bundle:
    """Read a bundle, its scorer on demand, and check its weights against its JSON. Raises BundleError."""
    info = load_info(store, prefix)
    weights = _checked(store, prefix + WEIGHTS_KEY, info.weights_sha256, info.weights_bytes)
    scorer = None
    if with_scorer:
        if info.scorer is None:
            raise BundleError(
                f"{store.url}/{prefix}{BUNDLE_KEY}: the bundle holds no discriminator to score with, as those of r3gan with "
                "pac 1 do; train it again, or leave the column score out"
            )
        scorer = _checked(store, prefix + SCORER_KEY, info.scorer.sha256, info.scorer.num_bytes)
    return Bundle(info, weights, f"{store.url}/{prefix}{WEIGHTS_KEY}", scorer)


def _checked(store: Store, key: str, sha256: str, num_bytes: int) -> bytes:
    where = f"{store.url}/{key}"
    try:
        # One byte more than there should be, so that a longer object is noticed without being fetched whole.
        weights = store.get(key, length=num_bytes + 1)
    except ObjectMissingError as err:
        raise BundleError(
            f"{where}: missing, though {BUNDLE_KEY} is there; the bundle was damaged, copy it again"
        ) from err
    if len(weights) != num_bytes:
        seen = f"only {len(weights)}" if len(weights) < num_bytes else "more"
        raise BundleError(f"{where}: has {seen} bytes, {BUNDLE_KEY} says {num_bytes}; copy the bundle again")
    if (seen := hashlib.sha256(weights).hexdigest()) != sha256:
        raise BundleError(f"{where}: SHA-256 is {seen}, {BUNDLE_KEY} says {sha256}; copy the bundle again")
    return weights
