"""Training and generating with a live display; what the commands share."""

from __future__ import annotations

from genworker import bundle as bundles
from genworker.bulk.job import JobResult
from genworker.bulk.job import generate as run_job
from genworker.bulk.request import GenerateSpec
from genworker.cli.display import Display, console
from genworker.errors import BundleError, TrainingError
from genworker.stores import child_url, open_store
from genworker.training import record, trainer
from genworker.training.spec import TrainSpec


def run_training(spec: TrainSpec, out: str, title: str) -> str:
    """Train, unless the run is finished already; returns the bundle's URL."""
    store, bundle_url = open_store(out), child_url(out, "bundle")
    try:
        info = bundles.load_info(store, record.BUNDLE_PREFIX)
    except BundleError:
        pass
    else:
        record.claim(spec, store)  # the bundle of another run must not pass for this one's
        console.print(f"{title}: {out} is finished ({info.lineage.images_seen:,} images seen)", soft_wrap=True)
        return bundle_url
    display = Display(title, spec.training.images, "images", note="starting Ray")
    with display.running():
        result = trainer.train(spec, out, display.on_metrics, display.event)
    if not result.finished:
        raise TrainingError(f"{out}: stopped after {result.images_seen} images; run the same command again to go on")
    return bundle_url


def run_generation(spec: GenerateSpec, title: str) -> JobResult:
    """Generate with a live display."""
    display = Display(title, spec.num_samples, "samples", note="starting Ray")
    with display.running():
        return run_job(spec, display.on_job)
