"""Measuring checkpoints beside training: one Ray task at a time, off the training workers.

In: the keys of checkpoints as they are stored. Out: evaluations in the run's store, the bundle of the best one below
``best/``, and events for the user. Training never waits for it; a checkpoint that comes while another is measured is passed
over, unless it is the last.

Ray Train's own validation (`ray.train.ValidationConfig`) measures what `ray.train.report` was given: directories in Ray
Train's storage, handed over at a barrier. Checkpoints here are objects of the run's store that Ray Train never sees, and a
validation that is queued there would hold up the end of a start, of which a run that is preempted or grows has many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from genworker import cluster
from genworker.device import pick_device
from genworker.errors import GenworkerError, ObjectMissingError
from genworker.training import checkpoint
from genworker.training.best import evaluate_checkpoint
from genworker.training.hooks import News
from genworker.training.spec import ResourceSpec, TrainSpec

_MOST_CPUS = 8  # of one task; others may want to use the cluster, too


@dataclass(frozen=True)
class Share:
    """What a task may take of the cluster: processors (none: it shares one with a worker) and whether a GPU."""

    cpus: int
    gpu: bool


def share_of(nodes: Sequence[Mapping[str, float]], resources: ResourceSpec, *, workers: int) -> Share:
    """What ``workers`` of a run leave of nodes with these Ray resources, wherever they are."""
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    spare = int(cpus - workers * resources.cpus_per_worker)
    if resources.use_gpu and gpus - workers >= 1:
        # Its generator is what takes long; asking for a processor as well could ask for another node.
        return Share(0, gpu=True)
    # Some node has at least the average left, and at least one processor if any has.
    return Share(min(_MOST_CPUS, max(spare // max(1, len(nodes)), min(spare, 1), 0)), gpu=False)


def _measure(values: dict[str, Any], url: str, key: str, share: Share) -> str | None:
    """What the task does; returns the line to tell, or None where the checkpoint is no part of the run any more."""
    import torch

    torch.set_num_threads(max(1, share.cpus))  # the workers need the others
    spec = TrainSpec.model_validate(values)
    try:
        measured = evaluate_checkpoint(spec, url, key, pick_device(use_gpu=share.gpu))
    except ObjectMissingError:
        return None
    if measured is None:
        return None
    outcome, is_best = measured
    best = " (the best so far)" if is_best else ""
    number = outcome["metrics"].get(spec.evaluation.metric)
    text = "not finite" if number is None else f"{number:.4g}"
    return News(
        f"evaluation at image {outcome['images_seen']}: {spec.evaluation.metric} {text}{best}",
        "evaluation",
        "info",
        images_seen=outcome["images_seen"],
        metrics={spec.evaluation.metric: number},
    )


class Evaluator:
    """Evaluates checkpoints of one run as ``spec.evaluation`` says."""

    def __init__(self, spec: TrainSpec, url: str, on_event: Callable[[str], None], *, measured: int = -1) -> None:
        """Measure nothing yet.

        Args:
            spec: of the run.
            url: of the run.
            on_event: told in one line what came of each evaluation.
            measured: images seen at the newest evaluation that the run has, or -1.
        """
        self._spec, self._url, self._on_event = spec, url, on_event
        self._running: Any = None
        self._running_key: str | None = None
        self._done_key = checkpoint.key_of(measured) if measured >= 0 else None
        self._trained = False
        self._late: list[str] = []
        self._next_due = self._due_after(measured)
        self._newest = -1
        self._outdated = False

    def offer(self, key: str | None) -> None:
        """Take note of the newest checkpoint, and tell what came of an earlier one."""
        if key is not None:
            self._note(key)
        self._collect(0.0)
        if key is None or self._running is not None or not self._is_due(key):
            return
        self._next_due = self._due_after(checkpoint.images_of(key))
        self._start(key)

    def finish(self, key: str | None) -> list[str]:
        """Measure the last checkpoint, if it was not, and wait; returns what was measured after it was stored.

        The workers have ended, so that it may use what was theirs.
        """
        seconds = self._spec.evaluation.final_wait_seconds
        deadline = time.monotonic() + seconds
        self._trained |= key is not None
        self._collect(seconds)
        if key is not None and self._spec.evaluation.num_samples and key != self._done_key:
            self._start(key, workers=0)
            self._collect(max(1.0, deadline - time.monotonic()))
        return self._late

    def _note(self, key: str) -> None:
        images_seen = checkpoint.images_of(key)
        self._trained = images_seen >= self._spec.training.images
        if images_seen < self._newest:
            # The run went back: what was measured beyond this is measured again when it comes again.
            self._done_key, self._next_due = key, self._due_after(images_seen)
            self._outdated = self._running_key is not None and checkpoint.images_of(self._running_key) > images_seen
        self._newest = images_seen

    def _due_after(self, images_seen: int) -> int:
        """From how many images on a checkpoint is due after one of ``images_seen``."""
        every = self._spec.evaluation.every_images
        return 0 if every is None or images_seen < 0 else (images_seen // every + 1) * every

    def _is_due(self, key: str) -> bool:
        if not self._spec.evaluation.num_samples or key == self._done_key:
            return False
        return checkpoint.images_of(key) >= self._next_due

    def _start(self, key: str, workers: int | None = None) -> None:
        resources = self._spec.resources
        labels = resources.node_labels  # other nodes may not be allowed to write to the run
        nodes = [node["Resources"] for node in cluster.nodes(labels)]
        share = share_of(nodes, resources, workers=resources.most_workers if workers is None else workers)
        task = ray.remote(_measure).options(
            num_cpus=share.cpus, num_gpus=int(share.gpu), max_retries=1, label_selector=dict(labels) or None
        )
        self._running_key, self._outdated = key, False
        self._running = task.remote(self._spec.model_dump(mode="json"), self._url, key, share)

    def _collect(self, seconds: float) -> None:
        """Wait up to so long for what runs, and tell its line."""
        if self._running is None:
            return
        ready, _ = ray.wait([self._running], timeout=seconds)
        if not ready:
            if seconds:
                self._on_event(
                    f"the evaluation of {self._running_key} takes longer than evaluation.final_wait_seconds, "
                    f"{self._spec.evaluation.final_wait_seconds:g}, and is left out"
                )
            return
        try:
            line = ray.get(self._running)
            if line is not None and self._trained and self._running_key is not None:
                self._late.append(self._running_key)
        except ray.exceptions.RayTaskError as err:
            cause = err.cause if isinstance(err.cause, GenworkerError) else err
            line = f"the evaluation of {self._running_key} failed, training goes on: {str(cause).splitlines()[0]}"
        except ray.exceptions.RayError as err:
            line = f"the evaluation of {self._running_key} was lost, training goes on: {str(err).splitlines()[0]}"
        if line is not None:
            self._on_event(line)
        if not self._outdated:
            self._done_key = self._running_key
        self._running = self._running_key = None
