"""Calibration: which numerics make the most samples a second on the device at hand, found by trying them.

In: numerics to begin with, what may be changed, and a way to measure. Out: the fastest numerics that were seen, and every
figure. One thing is changed at a time and the best kept, within a few seconds; what makes other images than the start is not
taken, however fast. It changes nothing by itself: what is chosen counts once a plan holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from genworker.bulk.plan import Numerics
from genworker.config import Spec
from genworker.device import has_fast_bfloat16
from genworker.errors import BundleError, PlanError
from genworker.sampling.subpixel import has_layers_for_it
from genworker.schema import Pixels, SampleBatch

BUDGET_SECONDS = 5.0
# A job must keep an actor busy for this long: then the calibration costs it a twentieth at most, for what it may gain.
WORTHWHILE_SECONDS = 100.0
# What is not faster by this much is taken for noise, so that equal machines mostly choose alike.
_MARGIN = 0.03
_MEASURING_SECONDS = 0.4
_CUDA_BATCHES = 8  # measured together, because they overlap
_LEAST_RUNS = 2  # one that picks kernels, and one that counts
# How far images may be from those of the start, in steps of eight bits: over all values, and for the worst of them. Between
# bfloat16 and float32 trained models were measured to differ by 0.2 and 7, untrained ones of 256x256 by 0.5 and 8; the images
# of other samples differ by 50 and more.
_MEAN_STEPS, _MOST_STEPS = 1.0, 64
_COMPARED = 64  # images; fewer where a micro-batch has fewer

Change = dict[str, Any]


class Measurement(NamedTuple):
    """What one way did: its speed, and ``pixels`` of the plan's first samples, uint8 [N, H, W, C], N of 64 at most."""

    samples_per_second: float
    pixels: Pixels


class Trial(Spec):
    """One way that was tried; ``failed`` says why it could not be carried out, or what was wrong with its images."""

    dtype: str
    memory_format: str
    upsampling: str
    launch: str
    micro_batch: int
    threads: int = 1
    samples_per_second: float = 0.0
    failed: str = ""

    def describe(self) -> str:
        """A short text such as ``float32, channels_last, transposed, eager, 128``, and how many threads where not one."""
        several = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.dtype}, {self.memory_format}, {self.upsampling}, {self.launch}, {self.micro_batch}{several}"


class Calibration(Spec):
    """What was measured on one actor's device, and what was chosen; kept beside the plan for people, not part of it.

    ``samples_per_second`` is the speed of ``numerics``, without encoding; ``encode_seconds`` what one processor takes to encode
    a sample. 0 means that it was not measured.
    """

    numerics: Numerics
    seconds: float
    trials: tuple[Trial, ...]
    samples_per_second: float = 0.0
    encode_seconds: float = 0.0


def calibrate(
    start: Numerics,
    steps: Iterable[Sequence[Change]],
    measure: Callable[[Numerics], Measurement],
    *,
    budget_seconds: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Find numerics that are faster than ``start``.

    Args:
        start: measured first, and chosen unless something else is faster by a few percent.
        steps: groups of changes; of each group the best is kept before the next is tried.
        measure: what it raises for anything but ``start``, of RuntimeError, BundleError and PlanError, excludes that, and so do
            pixels that differ from those of ``start`` by more than a mean step of eight bits, or by 64 steps anywhere.
        budget_seconds: no trial is begun that would end later, if it took as long as that of ``start`` and as much longer as
            its micro-batches are larger.
        clock: seconds, as `clock_of` gives them.
    """
    began = clock()
    reference = measure(start)
    best, best_rate = start, reference.samples_per_second
    trial_seconds = clock() - began
    trials = [_trial(start, samples_per_second=best_rate)]
    for step in steps:
        stem = best
        for change in step:
            numerics = stem.model_copy(update=change)
            longer = _LEAST_RUNS * max(0, _samples_of_a_run(numerics) - _samples_of_a_run(start)) / best_rate
            if numerics == stem or clock() - began + trial_seconds + longer > budget_seconds:
                continue
            try:
                rate, pixels = measure(numerics)
            # No memory for it, a kernel that is not there, images that are not finite, or shards that would be too large.
            except (RuntimeError, BundleError, PlanError) as err:
                trials.append(_trial(numerics, failed=str(err).splitlines()[0][:200]))
                continue
            if wrong := _difference(reference.pixels, pixels):
                trials.append(_trial(numerics, failed=wrong))
                continue
            trials.append(_trial(numerics, samples_per_second=rate))
            if rate > best_rate * (1 + _MARGIN):
                best, best_rate = numerics, rate
    return Calibration(
        numerics=best, seconds=clock() - began, trials=tuple(trials), samples_per_second=round(best_rate, 1)
    )


def steps_for(
    device: torch.device,
    generator: nn.Module,
    start: Numerics,
    *,
    force_float32: bool,
    fixed_micro_batch: bool,
    shard: int | None = None,
) -> list[list[Change]]:
    """What can pay on ``device``, the largest gains first; ``shard`` is the number of samples that the user put in one.

    `torch.compile` is not among them: on a CPU it was measured to gain 3% for 20 seconds of compiling in every actor. Nor is
    the memory format: our networks lay their features out channels-last by themselves, whatever the layout of the weights.
    """
    on_gpu = device.type == "cuda"
    sizes = () if fixed_micro_batch else (4, 16, 64) if on_gpu else (0.25, 0.5, 2)
    micro_batches = [{"micro_batch": max(1, int(start.micro_batch * factor))} for factor in sizes]
    if sizes and shard is not None and shard < start.micro_batch:
        micro_batches.append({"micro_batch": shard})
    dtypes = [] if force_float32 or not has_fast_bfloat16(device) else [{"dtype": "float32"}]
    layers = [{"upsampling": "subpixel"}] if has_layers_for_it(generator) else []
    if on_gpu:
        return [[{"launch": "cuda_graph"}], micro_batches, layers, dtypes]
    threads = [{"threads": 1}] if start.threads > 1 else []  # small networks lose more by sharing than they gain
    return [threads, layers, micro_batches, dtypes]


def clock_of(start: Numerics) -> Callable[[], float]:
    """The clock to compare speeds by: of one thread on a CPU its own time, which leaves out what others take of a machine."""
    on_gpu = start.device_class.startswith("cuda")
    return time.perf_counter if on_gpu or start.threads > 1 else time.process_time


def measured(
    make: Callable[[int], Iterator[SampleBatch]],
    numerics: Numerics,
    clock: Callable[[], float],
    seconds: float = _MEASURING_SECONDS,
) -> Measurement:
    """The speed of ``make``, which makes the first so many samples of a plan with ``numerics``.

    It is the best of the runs that ``seconds`` allow, so that what else the machine does counts little.
    """
    count = _samples_of_a_run(numerics)
    batches = make(count)
    pixels = next(batches).pixels[:_COMPARED].copy()
    _exhaust(batches)  # the first run allocates, and picks kernels
    best, began = float("inf"), clock()
    while best == float("inf") or clock() - began < seconds:
        started = clock()
        _exhaust(make(count))
        best = min(best, clock() - started)
    return Measurement(count / best, pixels)


def _samples_of_a_run(numerics: Numerics) -> int:
    return numerics.micro_batch * (_CUDA_BATCHES if numerics.device_class.startswith("cuda") else 1)


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _difference(reference: Pixels, pixels: Pixels) -> str:
    """What is wrong with the pixels of a trial, as far as both have the same samples; empty where nothing is."""
    count = min(len(reference), len(pixels))
    steps = np.abs(reference[:count].astype(np.int16) - pixels[:count])
    mean, most = float(steps.mean()), int(steps.max())
    if mean <= _MEAN_STEPS and most <= _MOST_STEPS:
        return ""
    return (
        f"other images: {mean:.1f} of 255 steps from the first trial's on average and {most} at worst, more than "
        f"{_MEAN_STEPS:.0f} and {_MOST_STEPS}"
    )


def _trial(numerics: Numerics, *, samples_per_second: float = 0.0, failed: str = "") -> Trial:
    shown = numerics.model_dump(include=set(Trial.model_fields) - {"samples_per_second", "failed"})
    return Trial(**shown, samples_per_second=round(samples_per_second, 1), failed=failed)
