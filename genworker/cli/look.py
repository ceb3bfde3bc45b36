"""Looking at what lies at a URL: what it is, one sample of it, a page of samples. Returns values; prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from genworker import bundle as bundles
from genworker.bulk import commit
from genworker.bulk.manifest import published
from genworker.bulk.plan import BUNDLE_PREFIX, CALIBRATION_KEY, DATA_PREFIX, MANIFEST_KEY, PLAN_KEY
from genworker.bulk.request import virtual_plan
from genworker.cli.display import tell_remarks
from genworker.config import load_spec
from genworker.device import pick_device
from genworker.errors import GenworkerError, UsageError
from genworker.reading.dataset import open_dataset
from genworker.report.reader import read_run
from genworker.report.sheet import Block, contact_sheet
from genworker.sampling.calibration import Calibration
from genworker.sampling.engine import Engine
from genworker.schema import ImageSchema, SampleBatch
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.stores.base import is_there
from genworker.training import record
from genworker.training.spec import TrainSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from genworker.bulk.plan import Plan
    from genworker.stores.base import Store

_MAX_SHEET_ROWS = 20
_VIRTUAL_SAMPLES = 2**40  # a bundle stands for more samples than anyone will index


def kind_of(store: Store) -> str:
    """``dataset``, ``run`` or ``bundle``. Raises UsageError when it is none of them."""
    for key, kind in ((MANIFEST_KEY, "dataset"), (PLAN_KEY, "dataset"), (bundles.BUNDLE_KEY, "bundle")):
        if is_there(store, key):
            return kind
    if is_there(store, record.SPEC_KEY):
        return "run"
    raise UsageError(
        f"{store.url}: there is no dataset, training run or bundle here (no {MANIFEST_KEY}, {record.SPEC_KEY} or "
        f"{bundles.BUNDLE_KEY}); check the URL"
    )


def describe(url: str) -> dict[str, Any]:
    """Facts about what lies at ``url``, ready for JSON."""
    store = open_store(url)
    kind = kind_of(store)
    if kind == "bundle":
        return {"kind": kind, "url": store.url, **_bundle_facts(bundles.load_info(store))}
    if kind == "run":
        return {"kind": kind, "url": store.url, **_run_facts(store)}
    return {"kind": kind, "url": store.url, **_dataset_facts(store)}


def one_sample(url: str, index: int, seed: int, *, regenerate: bool, use_gpu: bool = False) -> SampleBatch:
    """Sample ``index`` of a dataset (read, or remade from its plan), or of what a bundle generates. N = 1."""
    store = open_store(url)
    if kind_of(store) == "dataset" and not regenerate:
        dataset = open_dataset(url)
        if index >= len(dataset):
            raise UsageError(
                f"--index {index}: the dataset has {len(dataset)} samples, so the last index is {len(dataset) - 1}"
            )
        sample = dataset[index]
        labels = None if sample.label is None else np.array([sample.label], np.int64)
        return SampleBatch(np.array([index], np.int64), sample.pixels[None], labels)
    engine, plan = _engine(store, seed, use_gpu=use_gpu)
    if index >= plan.num_samples:
        raise UsageError(f"--index {index}: the plan has {plan.num_samples} samples")
    return next(engine.batches(index, 1))


def make_sheet(url: str, per_class: int, seed: int, real_spec: str | None) -> Image:
    """A contact sheet of a published dataset or a bundle, beside real images of a spec's data if one is given."""
    store = open_store(url)
    blocks = []
    if real_spec is not None:
        source = open_source(load_spec(TrainSpec, real_spec, (), {}).data)
        tell_remarks("sheet", source.remarks)
        first = source.read(np.arange(min(len(source), 100 * per_class), dtype=np.int64))
        blocks.append(pick(iter([first]), source.schema, per_class, "real"))
    if kind_of(store) == "dataset":
        dataset = open_dataset(url)
        schema, batches, title = dataset.schema, dataset.batches(), f"{len(dataset):,} samples"
    else:
        engine, plan = _engine(store, seed)
        schema, batches, title = plan.image_schema, engine.batches(0, 100 * max(1, per_class)), f"seed {seed}"
    blocks.append(pick(batches, schema, per_class, "generated"))
    return contact_sheet(
        blocks, class_names=schema.class_names, per_row=per_class, max_rows=_MAX_SHEET_ROWS, title=title
    )


def pick(batches: Iterator[SampleBatch], schema: ImageSchema, per_class: int, caption: str) -> Block:
    """The first ``per_class`` samples of each class (of all, when unlabelled), reading no further than needed."""
    wanted = np.full(max(1, min(schema.num_classes, _MAX_SHEET_ROWS)), per_class)
    pixels, labels = [], []
    for batch in batches:
        groups = np.zeros(len(batch), np.int64) if batch.labels is None else batch.labels
        for row in range(len(batch)):
            group = groups[row]
            if group < len(wanted) and wanted[group] > 0:
                wanted[group] -= 1
                pixels.append(batch.pixels[row])
                labels.append(group)
        if not wanted.any():
            break
    return Block(np.stack(pixels), np.array(labels, np.int64) if schema.num_classes else None, caption)


def _engine(store: Store, seed: int, *, use_gpu: bool = False) -> tuple[Engine, Plan]:
    device = pick_device(use_gpu=use_gpu)
    if kind_of(store) == "dataset":
        plan = commit.read_plan(store)
        if plan is None:
            raise UsageError(f"{store.url}: holds no plan to regenerate from")
        return Engine(bundles.load(store, BUNDLE_PREFIX), plan, device), plan
    bundle = bundles.load(store, record.BUNDLE_PREFIX if kind_of(store) == "run" else "")
    plan = virtual_plan(bundle.info, _VIRTUAL_SAMPLES, seed, device)
    return Engine(bundle, plan, device), plan


def _bundle_facts(info: bundles.BundleInfo) -> dict[str, Any]:
    lineage = info.lineage
    return {
        "family": info.family.name,
        "digest": info.digest,
        "samples": info.image_schema.describe(),
        "latent_dim": info.family.latent_dim,
        "weights_bytes": info.weights_bytes,
        "images_seen": lineage.images_seen,
        "source": lineage.source,
        "source_digest": lineage.source_digest,
        "created": lineage.created,
        "versions": lineage.versions,
    }


def _run_facts(store: Store) -> dict[str, Any]:
    run = read_run(store)
    return {
        "finished": run.state == "finished",
        "state": run.state,
        "family": run.family,
        "images_seen": run.images_seen,
        "planned_images": run.planned_images or "unknown",
        "alarms": len(run.alarms),
        "last_report": run.last_report or "none yet",
    }


def _calibration_facts(store: Store) -> dict[str, Any]:
    try:
        trials = Calibration.model_validate_json(store.get(CALIBRATION_KEY)).trials
    except ValidationError:
        return {"damaged": CALIBRATION_KEY}
    return {trial.describe(): trial.failed or f"{trial.samples_per_second:,.0f} samples/s" for trial in trials}


def _dataset_facts(store: Store) -> dict[str, Any]:
    plan = commit.read_plan(store)
    manifest = published(store)
    facts: dict[str, Any] = {"published": manifest is not None}
    if manifest is not None:
        plan = manifest.plan
        facts |= {
            "num_samples": manifest.num_samples,
            "num_shards": len(manifest.shards),
            "num_bytes": manifest.num_bytes,
        }
    elif plan is not None:
        stored = sum(plan.shard_index_of(info.key) is not None for info in store.list(DATA_PREFIX))
        facts |= {"num_samples": plan.num_samples, "shards_stored": stored, "num_shards": plan.num_shards}
    if plan is not None:
        facts |= {
            "plan_id": plan.plan_id,
            "seed": plan.seed,
            "samples": plan.image_schema.describe(),
            "format": f"{plan.format}, {plan.codec}",
            "columns": list(plan.columns),
            "numerics": plan.numerics.model_dump(mode="json"),
        }
    if is_there(store, CALIBRATION_KEY):
        facts["calibration"] = _calibration_facts(store)
    try:
        facts["bundle"] = _bundle_facts(bundles.load_info(store, BUNDLE_PREFIX))
    except GenworkerError:
        facts["bundle"] = "not stored"
    return facts
