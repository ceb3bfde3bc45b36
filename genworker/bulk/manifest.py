"""From a store to a manifest that can be trusted, or the reasons why it cannot.

In: a store. Out: the `Manifest` that _SUCCESS vouches for, checked against its own plan. It reads two objects, lists the
shards only to explain what is missing, and never opens a shard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from genworker.bulk.plan import DATA_PREFIX, MANIFEST_KEY, MAX_PLAN_BYTES, PLAN_KEY, SUCCESS_KEY, Plan
from genworker.bulk.records import MAX_MANIFEST_BYTES, MAX_NOTE_BYTES, Manifest, Success
from genworker.config import Spec, first_problem
from genworker.errors import DatasetError, ObjectMissingError
from genworker.stores.base import get_at_most, is_there

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genworker.stores.base import Store

SpecT = TypeVar("SpecT", bound=Spec)

_RESUME = "run the same generate command again to resume"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a dataset.

    Attributes:
        key: of the object, relative to the dataset's URL.
        problem: what was seen and what was expected, in one line.
    """

    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


def published(store: Store) -> Manifest | None:
    """The manifest of a dataset that is complete: it and the _SUCCESS that vouches for it are there; None before that.

    Raises:
        DatasetError: one of the two is damaged or contradicts the other, so this is neither a dataset nor a job that goes on.
    """
    if not is_there(store, SUCCESS_KEY):
        return None
    manifest, faults = examine(store)
    if manifest is not None and not faults:
        return manifest
    # Either may also be gone by now, where a removal runs.
    if not (is_there(store, SUCCESS_KEY) and is_there(store, MANIFEST_KEY)):
        return None
    raise DatasetError(f"{store.url}/{faults[0]}")


def read_manifest(store: Store) -> Manifest:
    """Return the manifest of a finished dataset.

    Raises:
        DatasetError: there is no dataset, it is unfinished, or the manifest is damaged or contradicts itself.
    """
    manifest, faults = examine(store)
    if manifest is None or faults:
        raise DatasetError(f"{store.url}/{faults[0]}")
    return manifest


def examine(store: Store) -> tuple[Manifest | None, list[Fault]]:
    """Return the manifest as far as it can be read, and what is wrong with it and with _SUCCESS.

    The manifest is None, with at least one fault, where the shards that it should name cannot be known.
    """
    try:
        text = get_at_most(store, MANIFEST_KEY, MAX_MANIFEST_BYTES, DatasetError)
    except ObjectMissingError:
        return None, [Fault(MANIFEST_KEY, f"no manifest: {_what_is_there(store)}")]
    except DatasetError as err:
        return None, [Fault(MANIFEST_KEY, str(err).removeprefix(f"{store.url}/{MANIFEST_KEY}: "))]
    manifest = parse(Manifest, MANIFEST_KEY, text)
    if isinstance(manifest, Fault):
        return None, [manifest]
    contradictions = list(_contradictions(manifest))
    faults = [*_success_faults(store, manifest, hashlib.sha256(text).hexdigest()), *contradictions]
    return (None if contradictions else manifest), faults


def parse(cls: type[SpecT], key: str, text: bytes) -> SpecT | Fault:
    """Parse a control object, or say the first thing that is wrong with it."""
    try:
        return cls.read(text)
    except ValidationError as err:
        return Fault(key, f"{first_problem(err)}; it is damaged or of another version of genworker")


def _success_faults(store: Store, manifest: Manifest, manifest_sha256: str) -> Iterator[Fault]:
    try:
        success = parse(Success, SUCCESS_KEY, store.get(SUCCESS_KEY, length=MAX_NOTE_BYTES))
    except ObjectMissingError:
        yield Fault(SUCCESS_KEY, f"is missing: the job stopped at its last step; {_RESUME}")
        return
    if isinstance(success, Fault):
        yield Fault(SUCCESS_KEY, f"{success.problem}: if nothing else was changed, remove it and {_RESUME}")
    elif success.manifest_sha256 != manifest_sha256:
        yield Fault(
            MANIFEST_KEY,
            f"has SHA-256 {manifest_sha256}, {SUCCESS_KEY} says {success.manifest_sha256}; one of the two was changed "
            "after the job: restore it from a copy of the dataset",
        )
    elif success.plan_id != manifest.plan_id:
        yield Fault(SUCCESS_KEY, f"says plan {success.plan_id}, the manifest says {manifest.plan_id}")


def _contradictions(manifest: Manifest) -> Iterator[Fault]:
    plan = manifest.plan
    if manifest.plan_id != plan.plan_id:
        yield Fault(MANIFEST_KEY, f"says plan {manifest.plan_id}, the plan that it holds is {plan.plan_id}")
    if len(manifest.shards) != plan.num_shards or manifest.num_samples != plan.num_samples:
        yield Fault(
            MANIFEST_KEY,
            f"names {len(manifest.shards)} shards with {manifest.num_samples} samples, "
            f"its plan says {plan.num_shards} with {plan.num_samples}",
        )
        return
    for entry, task in zip(manifest.shards, plan.tasks(), strict=True):
        if (entry.key, entry.num_samples) != (task.key, task.num_samples):
            yield Fault(
                MANIFEST_KEY,
                f"shard {task.shard_index} is {entry.key} with {entry.num_samples} samples, "
                f"its plan says {task.key} with {task.num_samples}",
            )
            return


def _what_is_there(store: Store) -> str:
    try:
        plan = parse(Plan, PLAN_KEY, store.get(PLAN_KEY, length=MAX_PLAN_BYTES))
    except ObjectMissingError:
        return "there is no plan either, so this is no dataset of genworker; check the URL"
    if isinstance(plan, Fault):
        return f"and the plan cannot be read: {plan}"
    num_shards = sum(plan.shard_index_of(info.key) is not None for info in store.list(DATA_PREFIX))
    return f"the job has not finished ({num_shards} of {plan.num_shards} shards are there); {_RESUME}"
