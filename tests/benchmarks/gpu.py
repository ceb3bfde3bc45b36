"""Every check that needs a GPU, in one command and one list, below Ray: `python -m tests.benchmarks.gpu [--device cpu]`.

Speeds of the engine and of training steps per numerics, and whether the determinism contract holds on the device. Each figure
is printed as soon as it is there, and what fails costs its own section alone. Exits with 1 when a contract is broken or a
section failed; speeds are only printed. Of the project's dependencies it needs torch, numpy, pyarrow, safetensors, pydantic,
PyYAML, Pillow, imagecodecs and rich; neither Ray nor boto3.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.console import Console

from genworker import codecs, families
from genworker.bulk import commit
from genworker.bulk.plan import Plan
from genworker.bulk.request import GenerateSpec, make_plan, virtual_plan
from genworker.bulk.shard import ShardMaker
from genworker.bulk.stages import StageSeconds
from genworker.bulk.trials import calibrated
from genworker.bundle import Bundle, Lineage
from genworker.config import load_spec
from genworker.device import device_class, pick_device
from genworker.sampling.engine import Engine
from genworker.schema import ImageSchema, Pixels
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.spec import TrainSpec
from genworker.training.step import Trainer

PRESETS = ("fashion-tiny", "fashion-vae-tiny", "fashion-gpu")


@dataclass(frozen=True)
class Row:
    """One line; ``ok`` is None for a figure and a verdict for a contract."""

    what: str
    value: str
    ok: bool | None = None


def bundle_of(preset: str) -> Bundle:
    """An untrained bundle of a shipped spec: speed and determinism do not depend on training."""
    spec = load_spec(TrainSpec, preset, (), {})
    schema = ImageSchema(channels=1, height=28, width=28, num_classes=10)
    family = families.make(spec.family, schema)
    torch.manual_seed(0)
    networks = family.build()
    served = torch.nn.ModuleDict({name: networks[name] for name in family.served})
    return Bundle.pack(spec.family, schema, served, Lineage())


def with_numerics(plan: Plan, **changes: object) -> Plan:
    """The plan with other numerics."""
    return plan.model_copy(update={"numerics": plan.numerics.model_copy(update=changes)})


def pixels(engine: Engine, first: int, count: int) -> Pixels:
    """Samples [first, first + count)."""
    return np.concatenate([batch.pixels for batch in engine.batches(first, count)])


def exhaust(engine: Engine, count: int) -> None:
    """Make the first ``count`` samples and keep none."""
    made = sum(len(batch) for batch in engine.batches(0, count))
    assert made == count


def per_second(step: Callable[[], object], seconds: float) -> float:
    """How often a second ``step`` runs, after one call that is not counted."""
    step()
    started, made = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        made += 1
    return made / (time.perf_counter() - started)


def engine_rows(preset: str, device: torch.device, seconds: float) -> Iterator[Row]:
    """Speeds and contracts of the engine."""
    bundle = bundle_of(preset)
    plan = virtual_plan(bundle.info, 2**30, 0, device)
    launches = ("eager", "cuda_graph") if device.type == "cuda" else ("eager",)
    for dtype, launch in itertools.product(("float32", "bfloat16"), launches):
        what = f"{preset}: {dtype}, {launch}"
        for micro_batch in (128, 512, 2048):
            engine = Engine(bundle, with_numerics(plan, dtype=dtype, launch=launch, micro_batch=micro_batch), device)
            count = 8 * micro_batch
            rate = count * per_second(functools.partial(exhaust, engine, count), seconds)
            yield Row(f"{what}, micro-batch {micro_batch}", f"{rate:,.0f} samples/s")
        chosen = with_numerics(plan, dtype=dtype, launch=launch, micro_batch=128)
        engine = Engine(bundle, chosen, device)
        whole = pixels(engine, 0, 1000)
        if launch == "eager":
            eager = whole
        else:  # a graph that does not look at its inputs would repeat itself perfectly
            differ, worst = int((whole != eager).sum()), int(np.abs(whole.astype(int) - eager).max())
            what_differs = f"{differ} differ, by {worst} of 255 at most"
            yield Row(f"{what}: pixels as those without a graph", what_differs, worst <= 2)
        again = pixels(Engine(bundle, chosen, device), 0, 1000)
        pieces = np.concatenate([pixels(engine, first, 125) for first in range(0, 1000, 125)])
        for name, other in (("when repeated", again), ("for any cut", pieces)):
            differ = int((whole != other).sum())
            yield Row(f"{what}: pixels equal {name}", f"{differ} differ", differ == 0)
    here = pixels(Engine(bundle, with_numerics(plan, dtype="float32", micro_batch=128), device), 0, 500).astype(int)
    host = torch.device("cpu")
    there_plan = with_numerics(virtual_plan(bundle.info, 2**30, 0, host), dtype="float32", micro_batch=128)
    there = pixels(Engine(bundle, there_plan, host), 0, 500).astype(int)
    worst = int(np.abs(here - there).max())
    yield Row(f"{preset}: float32 pixels against the CPU's, largest difference", f"{worst} of 255", worst <= 2)
    found = calibrated(GenerateSpec(bundle="-", out="-", num_samples=10**12), bundle, device, 1)
    for trial in found.trials:
        yield Row(
            f"{preset}: calibration: {trial.describe()}", trial.failed or f"{trial.samples_per_second:,.0f} samples/s"
        )


def pipeline_rows(preset: str, device: torch.device, seconds: float) -> Iterator[Row]:
    """Whole shards into memory by one actor with all processors, against the slowest stage alone."""
    bundle, cores = bundle_of(preset), os.cpu_count() or 1
    spec = GenerateSpec(bundle="-", out="-", num_samples=2**30, samples_per_shard=4096)
    plan = make_plan(spec, bundle.info, calibrated(spec, bundle, device, 1).numerics)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    commit.claim(store, plan)
    commit.store_bundle(store, bundle)
    maker = ShardMaker(store, device, cores)
    maker.make(plan.task(0), 0)
    numbers, made, stages = itertools.count(1), 0, StageSeconds()
    started = time.perf_counter()

    def work() -> int:
        count = 0
        while time.perf_counter() - started < seconds:
            receipt = maker.make(plan.task(next(numbers)), 0)
            stages.add(receipt.stages or StageSeconds())
            count += receipt.num_samples
        return count

    with ThreadPoolExecutor(3) as threads:
        made = sum(future.result() for future in [threads.submit(work) for _ in range(3)])
    rate = made / (time.perf_counter() - started)
    size = plan.numerics.micro_batch
    images = pixels(Engine(bundle, plan, device), 0, size)
    alone = 8 * size * per_second(functools.partial(exhaust, Engine(bundle, plan, device), 8 * size), seconds)
    codec = codecs.make(plan.codec, plan.image_schema)
    with ThreadPoolExecutor(cores) as threads:
        encode = size * per_second(lambda: list(threads.map(codec.encode, images)), seconds)
    yield Row(f"{preset}: engine alone", f"{alone:,.0f} samples/s")
    yield Row(f"{preset}: {codec.name} alone, {cores} threads", f"{encode:,.0f} samples/s")
    share = rate / min(alone, encode)
    yield Row(f"{preset}: whole shards", f"{rate:,.0f} samples/s, {share:.2f} of the slowest stage (aim 0.85)")
    shown = ", ".join(f"{stage} {spent:.1f}" for stage, spent in asdict(stages).items())
    yield Row(f"{preset}: seconds of three threads", shown)


def training_rows(preset: str, device: torch.device, seconds: float) -> Iterator[Row]:
    """Speeds of training steps, and finite gradients."""
    for precision in ("float32", "bfloat16"):
        overrides = [f"training.precision={precision}", "training.batch_size=256", "data.url=shipped"]
        spec = load_spec(TrainSpec, preset, overrides, {"resources.workers": 1})
        source = open_source(spec.data)
        trainer = Trainer(spec, source, 0, 1, device)
        with Loader(source, batch_size=256, seed=0, rank=0, world_size=1, start=0) as loader:

            def step(trainer: Trainer = trainer, loader: Loader = loader) -> None:
                trainer.step([next(loader)], Meter())

            rate = 256 * per_second(step, seconds)
        bad = trainer.state.counters.nonfinite_steps
        yield Row(
            f"{preset}: training, {precision}, batch 256", f"{rate:,.0f} images/s, {bad} non-finite steps", bad == 0
        )


def main() -> int:
    """Run all checks and print each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="per speed figure")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="these alone; may be given several times")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --device cpu runs the same checks on the CPU", file=sys.stderr)
        return 1
    device = pick_device(use_gpu=arguments.device == "cuda")
    console = Console(width=160, highlight=False)
    console.print(f"{device_class(device)}, torch {torch.__version__}")
    good = True
    # Training first: an engine makes its process compute as plans promise, which training does not pay for.
    for rows_of in (training_rows, engine_rows, pipeline_rows):
        for preset in arguments.preset or PRESETS:
            try:
                for row in rows_of(preset, device, arguments.seconds):
                    verdict = "" if row.ok is None else "ok" if row.ok else "BROKEN"
                    console.print(f"{row.what:<76}  {row.value}  {verdict}", soft_wrap=True)
                    good &= row.ok is not False
            except Exception:
                good = False
                traceback.print_exc()
                console.print(f"{preset}: {rows_of.__name__}: FAILED, see above")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
