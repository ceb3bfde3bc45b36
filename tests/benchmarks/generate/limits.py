"""What the machine can do at most: the forward pass alone, and each stage alone."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import TYPE_CHECKING, Any

from tests.benchmarks.generate.models import PLAIN_BATCH, engine_parts, plain_generator, plain_inputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CORES = os.cpu_count() or 1
STAGE_SAMPLES = 4_096
STAGES = ("latents", "forward", "quantise", "encode", "write", "put")


def engine_forward(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """Nothing but the generator, with the plan's numerics and the actors' allocator: one process of one thread a core."""
    spans = _on_all_cores(_forward_worker, bundle, samples // CORES, folder)
    made = sum(span["samples"] for span in spans)
    return {
        "rate": made / (max(span["end"] for span in spans) - min(span["start"] for span in spans)),
        "cpu_seconds_per_sample": sum(span["cpu_seconds"] for span in spans) / made,
    }


def _on_all_cores(
    work: Callable[[str, int, Path, Any], dict[str, float]], bundle: str, samples: int, folder: Path
) -> list[dict[str, float]]:
    """What ``work`` finds in one process of one thread a core, all at once: cores that share caches slow each other."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(CORES), context.Queue()
    workers = [
        context.Process(target=_worker, args=(found, work, bundle, samples, folder / str(core), barrier))
        for core in range(CORES)
    ]
    for worker in workers:
        worker.start()
    spans = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    return spans


def _worker(found: Any, work: Callable[..., dict[str, float]], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    found.put(work(*arguments))


def _forward_worker(bundle: str, samples: int, folder: Path, barrier: Any) -> dict[str, float]:
    import torch

    from genworker.sampling.latents import labels, latents

    plan, generator = engine_parts(bundle, samples)
    size = plan.numerics.micro_batch
    z = torch.from_numpy(latents(0, 0, size, generator.latent_dim)).to(next(generator.parameters()).dtype)
    classes = torch.from_numpy(labels(0, 0, size, plan.image_schema.num_classes, "balanced"))
    with torch.inference_mode():
        for _ in range(4):
            generator(z, classes)
        barrier.wait()
        start, cpu = time.time(), time.process_time()
        for _ in range(samples // size):
            generator(z, classes)
        cpu_seconds = time.process_time() - cpu
        return {"start": start, "end": time.time(), "samples": samples // size * size, "cpu_seconds": cpu_seconds}


def plain_forward(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """The generator as people call it: float32, batches of 256, inference mode, all threads."""
    import torch

    generator, classes = plain_generator(bundle)
    with torch.inference_mode():
        z, labels = plain_inputs(generator, classes, PLAIN_BATCH)
        for _ in range(2):
            generator(z, labels)
        rounds = max(1, samples // PLAIN_BATCH)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            generator(z, labels)
        return {
            "rate": rounds * PLAIN_BATCH / (time.perf_counter() - start),
            "cpu_seconds_per_sample": (time.process_time() - cpu) / (rounds * PLAIN_BATCH),
        }


def stages(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """CPU seconds per sample of each stage alone, as an actor does them; the mean of one process of one thread a core."""
    found = _on_all_cores(_stage_worker, bundle, STAGE_SAMPLES, folder)
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def _stage_worker(bundle: str, samples: int, folder: Path, barrier: Any) -> dict[str, float]:
    import numpy as np
    import torch

    from genworker import codecs
    from genworker.sampling.latents import labels, latents
    from genworker.sampling.pixels import quantise
    from genworker.schema import SampleBatch
    from genworker.stores import open_store

    plan, generator = engine_parts(bundle, samples)
    dtype = next(generator.parameters()).dtype
    size, schema = plan.numerics.micro_batch, plan.image_schema
    starts = range(0, samples, size)
    found: dict[str, float] = {}

    def timed(name: str, calls: list[Callable[[], Any]]) -> list[Any]:
        calls[0]()
        barrier.wait()
        start = time.process_time()
        results = [call() for call in calls]
        found[name] = (time.process_time() - start) / samples
        return results

    dim = generator.latent_dim
    drawn = timed("latents", [lambda s=s: latents(plan.seed, s, size, dim) for s in starts])  # type: ignore[misc]
    classes = [labels(plan.seed, s, size, schema.num_classes, plan.labels) for s in starts]
    pairs = [(torch.from_numpy(z).to(dtype), torch.from_numpy(y)) for z, y in zip(drawn, classes, strict=True)]
    with torch.inference_mode():
        images = timed("forward", [lambda p=p: generator(*p) for p in pairs])  # type: ignore[misc]
        pixels = timed("quantise", [lambda i=i: quantise(i) for i in images])  # type: ignore[misc]
    codec = codecs.make(plan.codec, schema)
    encoded = timed("encode", [lambda b=b: [codec.encode(p) for p in b] for b in pixels])  # type: ignore[misc]

    for _ in range(2):  # the first one sets Arrow up
        writer = plan.open_format().writer(plan.provenance(plan.task(0)))
        start = time.process_time()
        for first, batch, y, files in zip(starts, pixels, classes, encoded, strict=True):
            writer.write(SampleBatch(np.arange(first, first + size), batch, y), files)
        data = writer.close()
        found["write"] = (time.process_time() - start) / samples
    store = open_store(str(folder / "stage-store"))
    start = time.process_time()
    store.put("shard", data)
    found["put"] = (time.process_time() - start) / samples
    found["image_bytes"] = sum(len(image) for batch in encoded for image in batch) / samples
    return found
