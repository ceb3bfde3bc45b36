"""How fast `generate` is, against the limits of the machine and against what people write instead; all in one run.

Run it on a quiet machine: `python -m tests.benchmarks.generate --json results.json`. Every part runs in a process of its
own, in turn, for some rounds; figures are medians over the rounds. It prints ratios, which survive a noisy machine better.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from genworker.bulk.plan import Plan

CORES = os.cpu_count() or 1
ACTORS = 2
PLAIN_BATCH = 256
STAGE_SAMPLES = 2_048
# A second, smaller job of the same kind: the difference of both is the rate without start-up, the same way for all.
SMALL_SHARE = 8

# name -> (family, schema, samples). 28x28x1 is the generator that fashion-tiny had when this was first measured;
# its size stays, so that figures of different days can be compared.
MODELS: dict[str, tuple[dict[str, Any], dict[str, int], int]] = {
    "28x28x1": (
        {"latent_dim": 64, "generator": {"widths": [128, 64, 32], "blocks": [1, 1, 0]}},
        {"channels": 1, "height": 28, "width": 28, "num_classes": 10},
        16_000,
    ),
    "64x64x3": (
        {"latent_dim": 64, "generator": {"widths": [128, 64, 32], "blocks": [1, 1, 0], "patch": 2}},
        {"channels": 3, "height": 64, "width": 64, "num_classes": 10},
        4_000,
    ),
}


# ---- parts: each returns numbers by name, and runs in a fresh process ----


def engine_forward(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """(a) Nothing but the generator, with the plan's numerics and the actors' allocator: one process of one thread a core."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(CORES), context.Queue()
    share = samples // CORES
    workers = [context.Process(target=_forward_worker, args=(bundle, share, barrier, times)) for _ in range(CORES)]
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {"rate": share * CORES / (max(end for _, end in spans) - min(start for start, _ in spans))}


def _forward_worker(bundle: str, samples: int, barrier: Any, times: Any) -> None:
    import torch

    torch.set_num_threads(1)
    plan, generator, _ = _engine_parts(bundle, samples)
    size = plan.numerics.micro_batch
    inputs = _inputs(plan, generator, size)
    with torch.inference_mode():
        for _ in range(4):
            generator(*inputs)
        barrier.wait()
        start = time.time()
        for _ in range(samples // size):
            generator(*inputs)
        times.put((start, time.time()))


def plain_forward(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """(b) The generator as people call it: float32, batches of 256, inference mode, all threads."""
    import torch

    generator, classes = _plain_generator(bundle)
    with torch.inference_mode():
        z, labels = _plain_inputs(generator, classes, PLAIN_BATCH)
        for _ in range(2):
            generator(z, labels)
        start = time.perf_counter()
        for _ in range(samples // PLAIN_BATCH):
            generator(z, labels)
        return {"rate": samples // PLAIN_BATCH * PLAIN_BATCH / (time.perf_counter() - start)}


def stages(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """(c) CPU seconds per sample of each stage alone, in one process of one thread, as an actor does them."""
    import numpy as np
    import torch

    from genworker import codecs
    from genworker.sampling.latents import labels, latents
    from genworker.sampling.pixels import quantise
    from genworker.schema import SampleBatch
    from genworker.stores import open_store

    torch.set_num_threads(1)
    plan, generator, dtype = _engine_parts(bundle, STAGE_SAMPLES)
    size, schema = plan.numerics.micro_batch, plan.image_schema
    starts = range(0, STAGE_SAMPLES, size)
    found: dict[str, float] = {}

    def timed(name: str, calls: list[Callable[[], Any]]) -> list[Any]:
        calls[0]()
        start = time.process_time()
        results = [call() for call in calls]
        found[name] = (time.process_time() - start) / STAGE_SAMPLES
        return results

    dim = generator.latent_dim
    drawn = timed("latents", [lambda s=s: latents(plan.seed, s, size, dim) for s in starts])  # type: ignore[misc]
    classes = [labels(plan.seed, s, size, schema.num_classes, plan.labels) for s in starts]
    pairs = [(torch.from_numpy(z).to(dtype), torch.from_numpy(y)) for z, y in zip(drawn, classes, strict=True)]
    with torch.inference_mode():
        images = timed("forward", [lambda p=p: generator(*p) for p in pairs])  # type: ignore[misc]
        pixels = timed("quantise", [lambda i=i: quantise(i) for i in images])  # type: ignore[misc]
    codec = codecs.make(plan.codec, schema)
    encoded = timed("encode png", [lambda b=b: [codec.encode(p) for p in b] for b in pixels])  # type: ignore[misc]

    for _ in range(2):  # the first one sets Arrow up
        writer = plan.open_format().writer(plan.provenance(plan.task(0)))
        start = time.process_time()
        for first, batch, y in zip(starts, pixels, classes, strict=True):
            writer.write(SampleBatch(np.arange(first, first + size), batch, y))
        data = writer.close()
        found["parquet write"] = max(0.0, (time.process_time() - start) / STAGE_SAMPLES - found["encode png"])
    store = open_store(str(folder / "stage-store"))
    start = time.process_time()
    store.put("shard", data)
    found["put"] = (time.process_time() - start) / STAGE_SAMPLES
    found["png_bytes"] = sum(len(image) for batch in encoded for image in batch) / STAGE_SAMPLES
    return found


def ours(bundle: str, samples: int, folder: Path, *, cold: bool = False) -> dict[str, float]:
    """(d) `generate` with two actors into a folder; ``cold`` runs the one job in a new cluster, as a command does."""
    from genworker.bulk.job import generate
    from genworker.bulk.request import GenerateSpec
    from genworker.reading import verify

    _start_ray()
    found: dict[str, float] = {}
    for name, count in _jobs(samples, cold=cold):
        out = folder / name
        start = time.perf_counter()
        result = generate(GenerateSpec(bundle=bundle, out=str(out), num_samples=count, actors=ACTORS))
        found[f"{name}_seconds"] = time.perf_counter() - start
        found[f"{name}_making_seconds"] = result.making_seconds
    if not cold:
        assert verify(str(folder / "job")) == []
    return found


def ray_data(bundle: str, samples: int, folder: Path, *, cold: bool = False) -> dict[str, float]:
    """(e) The same model in Ray Data as a user would write it: two actors, batches of 256, Pillow, write_parquet."""
    import ray.data

    _start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict[str, float] = {}
    for name, count in _jobs(samples, cold=cold):
        start = time.perf_counter()
        rows = ray.data.range(count)
        sampled = rows.map_batches(
            RayDataSampler,
            fn_constructor_args=(bundle,),
            batch_size=PLAIN_BATCH,
            compute=ray.data.ActorPoolStrategy(size=ACTORS),
        )
        sampled.write_parquet(str(folder / name))
        found[f"{name}_seconds"] = time.perf_counter() - start
    if not cold:
        _check_images(folder / "job", samples)
    return found


class RayDataSampler:
    """What a user passes to `map_batches`."""

    def __init__(self, bundle: str) -> None:
        self.generator, self.classes = _plain_generator(bundle)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Map row ids to rows with PNG images."""
        import torch

        with torch.inference_mode():
            z, labels = _plain_inputs(self.generator, self.classes, len(batch["id"]))
            images = self.generator(z, labels)
        png = list(_pillow_pngs(images))
        return {"id": batch["id"], "image": png, "label": labels.numpy()}


def script(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """(f) A plain script: batches of 256 in float32 on all threads, one PNG file per image by Pillow."""
    import torch

    start = time.perf_counter()
    generator, classes = _plain_generator(bundle)
    found: dict[str, float] = {}
    done = 0
    while done < samples:
        count = min(PLAIN_BATCH, samples - done)
        with torch.inference_mode():
            images = generator(*_plain_inputs(generator, classes, count))
        for number, png in enumerate(_pillow_pngs(images)):
            (folder / f"{done + number:08d}.png").write_bytes(png)
        done += count
        if "small_seconds" not in found and done >= samples // SMALL_SHARE:
            found["small_seconds"] = (time.perf_counter() - start) * (samples // SMALL_SHARE) / done
    return found | {"job_seconds": time.perf_counter() - start}


PARTS: dict[str, Callable[[str, int, Path], dict[str, float]]] = {
    "engine forward": engine_forward,
    "plain forward": plain_forward,
    "stages": stages,
    "generate": ours,
    "ray data": ray_data,
    "generate, cold": functools.partial(ours, cold=True),
    "ray data, cold": functools.partial(ray_data, cold=True),
    "script": script,
}


# ---- what the parts share ----


def _engine_parts(bundle: str, samples: int) -> tuple[Plan, Any, torch.dtype]:
    """A plan for this machine, and the generator as the engine places it."""
    import torch

    from genworker import bundle as bundles
    from genworker.bulk.request import virtual_plan
    from genworker.stores import open_store

    loaded = bundles.load(open_store(bundle))
    plan = virtual_plan(loaded.info, samples, 0, torch.device("cpu"))
    dtype = torch.bfloat16 if plan.numerics.dtype == "bfloat16" else torch.float32
    module: Any = loaded.generator()
    module = module.to(dtype=dtype).to(memory_format=torch.channels_last)
    return plan, module, dtype


def _inputs(plan: Plan, generator: Any, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    from genworker.sampling.latents import labels, latents

    dtype = torch.bfloat16 if plan.numerics.dtype == "bfloat16" else torch.float32
    z = torch.from_numpy(latents(0, 0, size, generator.latent_dim)).to(dtype)
    return z, torch.from_numpy(labels(0, 0, size, plan.image_schema.num_classes, "balanced"))


def _plain_generator(bundle: str) -> tuple[Any, int]:
    from genworker import bundle as bundles
    from genworker.stores import open_store

    loaded = bundles.load(open_store(bundle))
    return loaded.generator(), loaded.info.image_schema.num_classes


def _plain_inputs(generator: Any, classes: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return torch.randn(count, generator.latent_dim), torch.randint(classes, (count,))


def _pillow_pngs(images: torch.Tensor) -> Iterator[bytes]:
    """Images [N, C, H, W] as PNG files, the way examples do it."""
    import io

    import torch
    from PIL import Image

    pixels = ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for array in pixels:
        sink = io.BytesIO()
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(sink, format="PNG")
        yield sink.getvalue()


def _check_images(folder: Path, samples: int) -> None:
    """Fail unless the folder's Parquet files hold that many different, decodable images that are not blank."""
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    images = pq.read_table(folder, columns=["image"]).column("image").to_pylist()
    assert len(images) == samples
    arrays = [np.asarray(Image.open(io.BytesIO(data))) for data in images[:: max(1, samples // 200)]]
    assert all(array.std() > 1 for array in arrays)
    assert len({array.tobytes() for array in arrays}) == len(arrays)


def _jobs(samples: int, *, cold: bool) -> Iterator[tuple[str, int]]:
    """Jobs of one cluster by name; unless ``cold``, the first one finds cold files and caches and counts for nothing."""
    if not cold:
        yield from (("warm", PLAIN_BATCH), ("small", samples // SMALL_SHARE))
    yield "job", samples


def _start_ray() -> None:
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=max(4, CORES),  # Ray Data's read and write tasks need room beside two actors
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _save_bundle(url: str, family: dict[str, Any], schema: dict[str, int]) -> None:
    import torch

    from genworker import families
    from genworker.bundle import Bundle, Lineage
    from genworker.families.r3gan import R3GANConfig
    from genworker.schema import ImageSchema
    from genworker.stores import open_store

    torch.manual_seed(0)
    config, shape = R3GANConfig.parse(family, origin="benchmark"), ImageSchema(**schema)
    networks = families.make(config, shape).build()
    served = torch.nn.ModuleDict({"generator": networks["generator"]})
    Bundle.pack(config, shape, served, Lineage()).save(open_store(url))


# ---- rounds and tables ----


def measure(part: str, bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """Run one part in a fresh process; adds the whole wall time, from the start of the process to its end."""
    from genworker.cluster import ALLOCATOR_ENV

    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONWARNINGS": "ignore"}
    if part in {"engine forward", "stages"}:
        environment |= ALLOCATOR_ENV  # as our actors have it; the others get what a user's process has
    command = [sys.executable, "-m", "tests.benchmarks.generate", "--part", part]
    command += ["--bundle", bundle, "--samples", str(samples)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--folder", place], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        wall = time.perf_counter() - start
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_seconds": wall}


def rounds_of(name: str, bundle: str | None, samples: int, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """The medians of all parts' figures over interleaved rounds."""
    url = bundle or str(folder / f"bundle-{name}")
    if bundle is None:
        family, schema, _ = MODELS[name]
        _save_bundle(url, family, schema)
    seen: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    for number in range(rounds):
        for part in PARTS:
            print(f"{name}: round {number + 1} of {rounds}: {part}", file=sys.stderr, flush=True)
            seen[part].append(measure(part, url, samples, folder))
    return {part: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for part, runs in seen.items()}


def summary(found: dict[str, dict[str, float]], samples: int) -> dict[str, float]:
    """Rates in samples/s, and their ratios."""
    small = samples // SMALL_SHARE
    stage = {name: value for name, value in found["stages"].items() if name not in {"png_bytes", "process_seconds"}}
    rates = {
        "engine forward": found["engine forward"]["rate"],
        "plain forward": found["plain forward"]["rate"],
        "roofline": CORES / sum(stage.values()),
    }
    for part in ("generate", "ray data", "script"):
        times = found[part]
        rates[f"{part}, job"] = samples / times["job_seconds"]
        rates[f"{part}, no start-up"] = (samples - small) / (times["job_seconds"] - times["small_seconds"])
    rates["generate, whole process"] = samples / found["generate, cold"]["process_seconds"]
    rates["ray data, whole process"] = samples / found["ray data, cold"]["process_seconds"]
    rates["script, whole process"] = samples / found["script"]["process_seconds"]
    rates["generate, making_seconds"] = samples / found["generate"]["job_making_seconds"]
    return rates


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """How `generate` stands, each time with and without start-up for both sides."""
    steady, job = rates["generate, no start-up"], rates["generate, job"]
    return {
        "generate / engine forward (no start-up)": steady / rates["engine forward"],
        "generate / roofline (no start-up)": steady / rates["roofline"],
        "generate / plain forward (no start-up)": steady / rates["plain forward"],
        "generate / ray data (no start-up)": steady / rates["ray data, no start-up"],
        "generate / ray data (with start-up)": job / rates["ray data, job"],
        "generate / ray data (whole process)": rates["generate, whole process"] / rates["ray data, whole process"],
        "generate / script (no start-up)": steady / rates["script, no start-up"],
        "generate / script (whole process)": rates["generate, whole process"] / rates["script, whole process"],
    }


def show(name: str, samples: int, found: dict[str, dict[str, float]]) -> None:
    """Print everything."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rates = summary(found, samples)
    table = Table("what", "samples/s", title=f"{name}: {samples:,} samples, {CORES} cores", title_justify="left")
    for label, value in rates.items():
        table.add_row(label, f"{value:,.0f}")
    console.print(table)
    table = Table("stage", "CPU microseconds per sample", "samples/s on one core")
    for label, value in found["stages"].items():
        if label not in {"png_bytes", "process_seconds"}:
            table.add_row(label, f"{value * 1e6:,.1f}", f"{1 / value:,.0f}" if value else "-")
    console.print(table)
    table = Table("part", "whole process, seconds", "job in a warm cluster, seconds", f"1/{SMALL_SHARE} of it, seconds")
    for part, whole in (("generate", "generate, cold"), ("ray data", "ray data, cold"), ("script", "script")):
        times = (found[whole]["process_seconds"], found[part]["job_seconds"], found[part]["small_seconds"])
        table.add_row(part, *(f"{seconds:.1f}" for seconds in times))
    console.print(table)
    table = Table("ratio", "times")
    for label, value in ratios(rates).items():
        table.add_row(label, f"{value:.2f}")
    console.print(table)
    console.print(f"PNG bytes per image: {found['stages']['png_bytes']:,.0f}")


def main() -> None:
    """Measure, print, and store as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="28x28x1")
    parser.add_argument("--bundle", help="URL of a trained bundle with classes, instead of an untrained generator")
    parser.add_argument("--samples", type=int, help="default: by model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to store all figures")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        print(json.dumps(PARTS[flags.part](flags.bundle, flags.samples, flags.folder)))
        return
    print(f"load before the start: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    results: dict[str, Any] = {"cores": CORES, "load": os.getloadavg()[0], "rounds": flags.rounds}
    for name in MODELS if flags.model == "all" else [flags.model]:
        samples = flags.samples or MODELS[name][2]
        with tempfile.TemporaryDirectory(prefix="genworker-benchmark-") as folder:
            found = rounds_of(name, flags.bundle, samples, flags.rounds, Path(folder))
        show(name, samples, found)
        rates = summary(found, samples)
        results[name] = {"samples": samples, "parts": found, "rates": rates, "ratios": ratios(rates)}
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
