"""Measuring checkpoints beside training: one Ray task at a time, off the training workers.

In: the keys of checkpoints as they are stored. Out: evaluations in the run's store, the bundle of the best one below
``best/``, and events for the user. Training never waits for it; a checkpoint that comes while another is measured is passed
over, unless it is the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from genworker.errors import GenworkerError, ObjectMissingError
from genworker.training import checkpoint
from genworker.training.best import evaluate_checkpoint
from genworker.training.spec import TrainSpec

_LAST_SECONDS = 600.0  # for the evaluation of the last checkpoint, which the run waits for


def _measure(values: dict[str, Any], url: str, key: str) -> str | None:
    """What the task does; returns the line to tell, or None where the checkpoint is no part of the run any more."""
    import torch

    torch.set_num_threads(1)  # the workers need the others
    spec = TrainSpec.model_validate(values)
    try:
        measured = evaluate_checkpoint(spec, url, key)
    except ObjectMissingError:
        return None
    if measured is None:
        return None
    outcome, is_best = measured
    best = " (the best so far)" if is_best else ""
    number = outcome["metrics"].get(spec.evaluation.metric)
    text = "not finite" if number is None else f"{number:.4g}"
    return f"evaluation at image {outcome['images_seen']}: {spec.evaluation.metric} {text}{best}"


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
        labels = dict(spec.resources.node_labels) or None  # other nodes may not be allowed to write to the run
        self._task = ray.remote(_measure).options(num_cpus=self._spare_cpus(), max_retries=1, label_selector=labels)

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
        """Measure the last checkpoint, if it was not, and wait; returns what was measured after it was stored."""
        deadline = time.monotonic() + _LAST_SECONDS
        self._trained |= key is not None
        self._collect(_LAST_SECONDS)
        if key is not None and self._spec.evaluation.num_samples and key != self._done_key:
            self._start(key)
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

    def _start(self, key: str) -> None:
        self._running_key, self._outdated = key, False
        self._running = self._task.remote(self._spec.model_dump(mode="json"), self._url, key)

    def _collect(self, seconds: float) -> None:
        """Wait up to so long for what runs, and tell its line."""
        if self._running is None:
            return
        ready, _ = ray.wait([self._running], timeout=seconds)
        if not ready:
            if seconds:
                self._on_event(f"the evaluation of {self._running_key} takes too long and is left out")
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

    def _spare_cpus(self) -> int:
        """One processor where the workers leave one, else none of its own: it shares theirs."""
        resources = self._spec.resources
        taken = resources.most_workers * resources.cpus_per_worker
        return int(ray.cluster_resources().get("CPU", 0) > taken)
