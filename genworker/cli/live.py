"""Training and generating with a live display and lineage events; what the commands share."""

from __future__ import annotations

import dataclasses
import datetime

from genworker import bundle as bundles
from genworker.bulk.job import JobResult
from genworker.bulk.job import generate as run_job
from genworker.bulk.progress import Progress
from genworker.bulk.request import GenerateSpec
from genworker.cli.display import Display
from genworker.errors import BundleError, TrainingError
from genworker.lineage import job as jobs
from genworker.lineage import sender
from genworker.stores import child_url, open_store
from genworker.training import record, trainer
from genworker.training.hooks import News
from genworker.training.spec import TrainSpec


def run_training(spec: TrainSpec, out: str, title: str, *, name: str | None = None, lineage: str | None = None) -> str:
    """Train with a live display, unless the run is finished already; returns the bundle's URL.

    Its log names the run by an id that all tries at one URL share. Lineage events call the job by ``name`` and go to
    ``lineage``, see `genworker.lineage.sender.follow`.
    """
    store = open_store(out)  # first of all: an address that cannot be used has no name either
    job = jobs.training(spec, out, name)
    display = Display(title, spec.training.images, "images", note="starting Ray", run_id=job.resume_id)

    def work() -> None:
        try:
            info = bundles.load_info(store, record.BUNDLE_PREFIX)
        except BundleError:
            pass
        else:
            record.claim(spec, store, goes_on=False)  # the bundle of another run must not pass for this one's
            images_seen = info.lineage.images_seen
            news = News(f"{out} is finished ({images_seen:,} images seen)", "finished", "info", images_seen=images_seen)
            display.event(news, style=None)
            return
        with display.running():
            display.event(News("starting Ray", "starting", "info", quiet=True))
            result = trainer.train(spec, out, display.on_metrics, display.event)
        if not result.finished:
            raise TrainingError(
                f"{out}: stopped after {result.images_seen} images; run the same command again to go on"
            )
        display.event(News("the bundle is stored", "finished", "info", quiet=True, images_seen=result.images_seen))

    sender.follow(job, lineage, display.event, work, lambda _: jobs.on_trained(job, store))
    return child_url(out, record.BUNDLE_PREFIX.rstrip("/"))


def run_generation(
    spec: GenerateSpec,
    title: str,
    *,
    name: str | None = None,
    date: datetime.date | None = None,
    run_id: str | None = None,
    lineage: str | None = None,
) -> JobResult:
    """Generate with a live display; its log names the run by ``run_id``, or by an id that all tries at one output share.

    Lineage events call the job by ``name``, say that it is that of ``date``, and go to ``lineage``, see
    `genworker.lineage.sender.follow`.
    """
    open_store(spec.out)  # as above
    job = jobs.generation(spec, name, date)
    display = Display(title, spec.num_samples, "samples", note="starting Ray", run_id=run_id or job.resume_id)
    latest = Progress(num_shards=0, num_done=0, samples_done=0, bytes_done=0, samples_made=0, making_seconds=0.0)

    def on_progress(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        jobs.on_progress(job, progress)
        display.on_job(progress)

    def on_event(text: str) -> None:
        display.on_job(dataclasses.replace(latest, event=text))

    def work() -> JobResult:
        with display.running():
            return run_job(spec, on_progress)

    def learn(result: JobResult) -> None:
        jobs.on_published(job, open_store(spec.out), result.manifest, result.samples_made)

    return sender.follow(job, lineage, on_event, work, learn)
