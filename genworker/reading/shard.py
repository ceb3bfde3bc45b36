"""From a manifest's entry to an open shard, with its content checked.

In: a store, a manifest, a shard index. Out: the format's reader, whose errors name the shard. It holds nothing.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from genworker.bulk.layout import getter
from genworker.errors import DatasetError, ObjectMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.bulk.records import Manifest
    from genworker.formats.base import Format, ShardReader
    from genworker.stores.base import Store


@contextmanager
def naming(store: Store, key: str) -> Iterator[None]:
    """Put the shard's name before the message of a DatasetError."""
    try:
        yield
    except DatasetError as err:
        raise DatasetError(f"{store.url}/{key}: {err}") from err


def open_shard(store: Store, manifest: Manifest, shard_index: int, format: Format, *, verify: bool) -> ShardReader:
    """Fetch a shard and open it.

    Raises:
        DatasetError: it is missing, its SHA-256 is not the manifest's (with ``verify``), it is damaged, or it was
            written by another plan.
    """
    entry, plan = manifest.shards[shard_index], manifest.plan
    try:
        data = store.get(entry.key)
    except ObjectMissingError as err:
        raise DatasetError(
            f"{store.url}/{entry.key}: is missing, the manifest names it; restore it from a copy, "
            "or generate the dataset again at another URL"
        ) from err
    if verify and (seen := hashlib.sha256(data).hexdigest()) != entry.sha256:
        # The manifest's size is that of all objects of a shard.
        alone = format.beside_name(0) is None
        sizes = (f" ({len(data)} bytes)", f" ({entry.num_bytes} bytes)") if alone else ("", "")
        raise DatasetError(
            f"{store.url}/{entry.key}: has SHA-256 {seen}{sizes[0]}, the manifest says {entry.sha256}{sizes[1]}; it was "
            "changed after the job: `genworker verify` lists all such shards"
        )
    with naming(store, entry.key):
        reader = format.reader(data, getter(store, entry.key))
        expected = plan.provenance(plan.task(shard_index))
        if dict(reader.provenance) != expected:
            raise DatasetError(
                f"it says that it is {dict(reader.provenance)}, expected {expected}; it is another shard"
            )
    return reader
