"""What tests ask of a stored dataset: its bytes by key, and its samples as one array."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

import genworker
from genworker.bulk.plan import DATA_PREFIX, MANIFEST_KEY, SUCCESS_KEY
from genworker.stores import open_store

if TYPE_CHECKING:
    from genworker.schema import Int64Array, Pixels


def published_digests(url: str) -> dict[str, str]:
    """SHA-256 by key of everything that readers of a dataset see: all shards, the manifest and _SUCCESS."""
    store = open_store(url)
    keys = [info.key for info in store.list(DATA_PREFIX)] + [MANIFEST_KEY, SUCCESS_KEY]
    return {key: hashlib.sha256(store.get(key)).hexdigest() for key in keys}


def stored_shards(url: str) -> list[str]:
    """Keys of the shards that are there, published or not."""
    return [info.key for info in open_store(url).list(DATA_PREFIX)]


def all_samples(url: str) -> tuple[Int64Array, Pixels, Int64Array | None]:
    """Indices [N], pixels [N, H, W, C] and labels [N] of a published dataset, in order."""
    batches = list(genworker.open(url).batches())
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return (
        np.concatenate([batch.sample_index for batch in batches]),
        np.concatenate([batch.pixels for batch in batches]),
        np.concatenate(labels) if labels else None,
    )
