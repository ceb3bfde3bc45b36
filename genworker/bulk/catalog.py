"""What is published below a URL: one line per dataset, from manifests and bundles alone.

In: a store. Out: `Published`, in the order of the keys. It opens no shard and changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from genworker import bundle as bundles
from genworker.bulk.plan import BUNDLE_PREFIX, MANIFEST_KEY, PLAN_KEY, SUCCESS_KEY
from genworker.bulk.records import MAX_MANIFEST_BYTES, MAX_NOTE_BYTES, Manifest, Success
from genworker.bundle import Lineage
from genworker.errors import BundleError, DatasetError, ObjectMissingError
from genworker.metrics.cards import Measured
from genworker.stores.base import ObjectInfo, Store, get_at_most


@dataclass(frozen=True)
class Published:
    """One published dataset.

    Attributes:
        name: its place below the URL that was asked for; empty when it is that URL.
        published: seconds since the epoch.
        manifest_sha256: what vouches for every byte of it.
        bundle_digest: of the model.
        evaluation: of exactly the weights that made it, with its cards, where their bundle holds one.
        training: the last report of the run that made the model, losses above all, where its bundle tells it.
    """

    name: str
    url: str
    published: float
    num_samples: int
    num_shards: int
    num_bytes: int
    plan_id: str
    manifest_sha256: str
    bundle_digest: str
    family: str
    evaluation: Measured | None = None
    training: dict[str, float] = field(default_factory=dict)

    @property
    def quality(self) -> dict[str, float]:
        """The finite numbers of the evaluation; empty where there is none, because losses say nothing of it."""
        return self.evaluation.finite if self.evaluation else {}

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        evaluation = self.evaluation.model_dump(mode="json") if self.evaluation else None
        return dataclasses.asdict(self) | {"quality": self.quality, "evaluation": evaluation}


def places(objects: Iterable[ObjectInfo], key: str) -> dict[str, ObjectInfo]:
    """The places (empty, or ending with a slash) below which an object called ``key`` lies, in key order."""
    found = {info.key.removesuffix(key): info for info in objects if info.key == key or info.key.endswith(f"/{key}")}
    return dict(sorted(found.items()))


def read_catalog(store: Store) -> tuple[list[Published], list[str]]:
    """All published datasets below the store's URL, and the names of those that are not finished.

    Lists everything that lies there, a thousand keys per request.

    Raises:
        DatasetError: a manifest is damaged, or is not the one that its marker vouches for.
    """
    objects = [info for info in store.list() if info.key.endswith((SUCCESS_KEY, PLAN_KEY))]
    markers = places(objects, SUCCESS_KEY)
    found = []
    for place, marker in markers.items():
        try:
            found.append(_read(store, place, marker))
        except ObjectMissingError:  # it is being removed, and its marker went after the listing
            continue
    unfinished = [place.rstrip("/") for place in places(objects, PLAN_KEY) if place not in markers]
    return found, unfinished


def _read(store: Store, place: str, marker: ObjectInfo) -> Published:
    url = f"{store.url.rstrip('/')}/{place}".rstrip("/")
    text = get_at_most(store, place + MANIFEST_KEY, MAX_MANIFEST_BYTES, DatasetError)
    digest = hashlib.sha256(text).hexdigest()
    try:
        vouched = Success.model_validate_json(store.get(place + SUCCESS_KEY, length=MAX_NOTE_BYTES)).manifest_sha256
        manifest = Manifest.read(text)
    except ValidationError as err:
        raise DatasetError(f"{url}: {MANIFEST_KEY} or {SUCCESS_KEY} is damaged: {err.errors()[0]['msg']}") from err
    if vouched != digest:
        raise DatasetError(
            f"{url}/{MANIFEST_KEY}: has SHA-256 {digest}, {SUCCESS_KEY} vouches for {vouched}; it was changed"
        )
    family, lineage = "", Lineage()
    try:
        info = bundles.load_info(store, place + BUNDLE_PREFIX)
        family, lineage = info.family.name, info.lineage
    except BundleError:
        pass  # the dataset stands without its model; only its catalogue line is shorter
    return Published(
        name=place.rstrip("/"),
        url=url,
        published=marker.modified,
        num_samples=manifest.num_samples,
        num_shards=len(manifest.shards),
        num_bytes=manifest.num_bytes,
        plan_id=manifest.plan_id,
        manifest_sha256=digest,
        bundle_digest=manifest.plan.bundle_digest,
        family=family,
        evaluation=lineage.evaluation,
        training={name: value for name, value in lineage.metrics.items() if math.isfinite(value)},
    )
