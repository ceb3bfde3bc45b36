"""Evaluations of a run's checkpoints, and the best of them: its bundle below ``best/``, and the checkpoint itself.

In: a spec, a run's URL, the key of a checkpoint. Out: objects in the run's store. An evaluation takes long, and meanwhile
the run may prune the checkpoint, or go back to before it; both are looked at when the numbers are there.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from genworker import families, metrics
from genworker.bundle import Bundle, Lineage, load_info, save_info
from genworker.errors import BundleError, CheckpointError, ObjectMissingError
from genworker.families.base import Scorer
from genworker.metrics.cards import Measured
from genworker.metrics.classifier import ClassifierConfig
from genworker.schema import ImageSchema
from genworker.stores import open_store
from genworker.stores.base import Store
from genworker.training import checkpoint
from genworker.training.checkpoint import Snapshot
from genworker.training.evaluation import evaluate
from genworker.training.record import (
    BEST_PREFIX,
    BUNDLE_PREFIX,
    best_evaluations,
    evaluation_key,
    read_evaluations,
    was_taken_back,
)
from genworker.training.reference import real_images
from genworker.training.spec import TrainSpec


def evaluate_checkpoint(
    spec: TrainSpec, url: str, key: str, device: torch.device | None = None
) -> tuple[dict[str, Any], bool] | None:
    """Evaluate the averaged generator of a checkpoint and store the outcome; to be called anywhere, also far from training.

    If no evaluation of the run is better, its bundle is stored below ``best/``. If it is one of the best that the spec keeps
    and was pruned while it was measured, the checkpoint is put back.

    Args:
        spec: of the run.
        url: of the run.
        key: of the checkpoint below it.
        device: to generate on; None is the CPU.

    Returns:
        What is stored below ``evaluations/``, `Evaluation.to_json`, ``images_seen`` and ``bundle``, the digest of the weights
        as a bundle, and whether it is the best; None where the run went back to before the checkpoint meanwhile, so that
        nothing is stored.

    Raises:
        CheckpointError, ObjectMissingError: the checkpoint is damaged, of another spec, or was pruned before it was read.
        UsageError, SourceError, StoreError: as their parts raise them.
    """
    store = open_store(url)
    settings = spec.evaluation
    real = real_images(spec.data, spec.training.holdout_share, settings.split)
    snapshot = checkpoint.read(store, key)
    bundle, images_seen = averaged(snapshot, f"{store.url}/{key}", spec, real.schema)
    outcome = evaluate(
        bundle,
        real,
        num_samples=settings.num_samples,
        also=(metrics.of_number(settings.metric),),
        cache=store,
        config=ClassifierConfig(images=settings.extractor_images),
        device=device,
    )
    if was_taken_back(store, images_seen, snapshot.counters["rollbacks"]):
        return None
    text = {"images_seen": images_seen, "bundle": bundle.digest, **outcome.to_json()}
    store.put(evaluation_key(images_seen), json.dumps(text).encode(), overwrite=True)
    best = best_of(store, spec)
    if images_seen in best[: spec.training.keep_best_checkpoints]:
        _put_back(store, snapshot)
    if best[:1] == [images_seen]:
        bundle.info = bundle.info.evaluated(Measured.of(text))
        bundle.save(store, BEST_PREFIX)
    return text, best[:1] == [images_seen]


def note_evaluation(store: Store) -> None:
    """Write the evaluation of a finished run's last weights, where there is one, into the lineage of its bundle.

    It is mostly made after the bundle was stored; the weights and the bundle's digest stay as they are.
    """
    info = load_info(store, BUNDLE_PREFIX)
    for line in read_evaluations(store, after=info.lineage.images_seen - 1):
        if line.get("bundle") == info.digest:
            save_info(info.evaluated(Measured.of(line)), store, BUNDLE_PREFIX)


def best_of(store: Store, spec: TrainSpec) -> list[int]:
    """Images seen at the evaluations of a run by its ``evaluation.metric``, best first."""
    metric = spec.evaluation.metric
    return best_evaluations(read_evaluations(store), metric, higher_is_better=metrics.higher_is_better(metric))


def averaged(snapshot: Snapshot, where: str, spec: TrainSpec, schema: ImageSchema) -> tuple[Bundle, int]:
    """The averaged networks of a checkpoint as a bundle, and the images seen. Raises CheckpointError, which says ``where``."""
    if snapshot.identity != spec.identity():
        raise CheckpointError(f"{where} was written by another spec than the one that it is evaluated with")
    family = families.make(spec.family, schema)
    built = family.build()
    networks = nn.ModuleDict({name: built[name] for name in family.served})
    networks.load_state_dict(checkpoint.average_of(snapshot))
    judges = nn.ModuleDict({name: built[name] for name in (family.scoring if isinstance(family, Scorer) else ())})
    judges.load_state_dict(checkpoint.trained_of(snapshot, judges.keys()))
    images_seen = int(snapshot.counters["images_seen"])
    return Bundle.pack(spec.family, schema, networks, Lineage(images_seen=images_seen), judges), images_seen


def take_best_back(store: Store, spec: TrainSpec, schema: ImageSchema, images_seen: int) -> None:
    """After a run went back to ``images_seen``: make ``best/`` the best of what is left, or leave none.

    The evaluations after it have to be gone already.
    """
    try:
        if load_info(store, BEST_PREFIX).lineage.images_seen <= images_seen:
            return
    except BundleError:
        return
    evaluations = {line["images_seen"]: line for line in read_evaluations(store)}
    for best in best_of(store, spec):
        key = checkpoint.key_of(best)
        try:
            bundle, _ = averaged(checkpoint.read(store, key), f"{store.url}/{key}", spec, schema)
        except (ObjectMissingError, CheckpointError):
            continue  # of the best ones only a few are kept
        bundle.info = bundle.info.evaluated(Measured.of(evaluations[best]))
        bundle.save(store, BEST_PREFIX)
        return
    for info in list(store.list(BEST_PREFIX)):
        store.delete(info.key)


def _put_back(store: Store, snapshot: Snapshot) -> None:
    try:
        store.head(snapshot.key)
    except ObjectMissingError:
        checkpoint.save(store, snapshot)
