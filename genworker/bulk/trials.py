"""Measured before there is a plan: what makes the samples of a request fastest on the device at hand.

In: a request, its bundle, a device. Out: numerics for the plan, and every figure. Real work is measured, as shards are made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from genworker import codecs
from genworker.bulk.encoding import seconds_to_encode
from genworker.bulk.plan import Numerics, Task
from genworker.bulk.request import GenerateSpec, make_plan, numerics_for, sample_schema
from genworker.bulk.stages import StageSeconds
from genworker.bundle import Bundle
from genworker.device import free_unused_memory, is_out_of_memory
from genworker.errors import UsageError
from genworker.sampling.calibration import (
    WORTHWHILE_SECONDS,
    Calibration,
    Measurement,
    calibrate,
    clock_of,
    measured,
    steps_for,
)
from genworker.sampling.grid import useful_share
from genworker.schema import SampleBatch
from genworker.works.generate import GenerateWork


def calibrated(spec: GenerateSpec, bundle: Bundle, device: torch.device, num_actors: int) -> Calibration:
    """The numerics for a new plan of this request, measured on ``device`` where that can pay for itself.

    What is measured is all that the device does for a sample: its score too, where one is asked for.

    Raises:
        BundleError: the generator's images, or their scores, are not finite there.
        UsageError: the device's memory does not hold a micro-batch.
    """
    try:
        return _calibrated(spec, bundle, device, num_actors)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        size = numerics_for(spec, sample_schema(bundle.info), device).micro_batch
        where = f"a GPU's memory, with gpus_per_actor {spec.gpus_per_actor:g}," if spec.use_gpu else "memory"
        or_more = ", or more of the GPU where actors share it" if spec.use_gpu else ""
        raise UsageError(
            f"micro_batch {size}: {where} does not hold so many samples at a time; give a smaller --micro-batch{or_more}"
        ) from err
    finally:
        free_unused_memory(device)


def _calibrated(spec: GenerateSpec, bundle: Bundle, device: torch.device, num_actors: int) -> Calibration:
    schema = sample_schema(bundle.info)
    start = numerics_for(spec, schema, device)
    clock = clock_of(start)

    def measure(numerics: Numerics, **how_long: float) -> Measurement:
        plan = make_plan(spec, bundle.info, numerics)
        work = GenerateWork(plan, bundle, device)

        def first(count: int) -> Iterator[SampleBatch]:
            return work.run(Task(0, 0, count, plan.shard_key(0)), StageSeconds())

        rate, pixels = measured(first, numerics, clock, **how_long)
        return Measurement(rate * useful_share(plan), pixels)

    # Measured also where nothing is to be compared: the generator proves itself before there is a plan.
    rate, pixels = measure(start, seconds=0.0)
    encode_seconds = seconds_to_encode(codecs.make(spec.codec, schema), pixels)
    if not spec.calibrate or spec.num_samples / num_actors < rate * WORTHWHILE_SECONDS:
        return Calibration(
            numerics=start, seconds=0.0, trials=(), samples_per_second=rate, encode_seconds=encode_seconds
        )
    generator = bundle.generator()
    assert isinstance(generator, nn.Module)
    steps = steps_for(
        device,
        generator,
        start,
        force_float32=spec.precision == "float32",
        fixed_micro_batch=spec.micro_batch is not None,
        shard=spec.samples_per_shard,
    )
    found = calibrate(start, steps, measure, clock=clock)
    return found.model_copy(update={"encode_seconds": encode_seconds})
