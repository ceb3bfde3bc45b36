"""Every check that needs a GPU, in one command and one table, below Ray: `python -m tests.benchmarks.gpu [--device cpu]`.

Speeds of the engine and of training steps per numerics, and whether the determinism contract holds on the device. Exits
with 1 when a contract is broken; speeds are only printed.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from genworker import families
from genworker.bulk.plan import Plan
from genworker.bulk.request import virtual_plan
from genworker.bundle import Bundle, Lineage
from genworker.config import load_spec
from genworker.device import device_class, pick_device
from genworker.sampling.engine import Engine
from genworker.schema import ImageSchema, Pixels
from genworker.sources import open_source
from genworker.training.loader import Loader
from genworker.training.spec import TrainSpec
from genworker.training.step import Meter, Trainer

PRESETS = ("fashion-tiny", "fashion-vae-tiny", "fashion-gpu")


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ok`` is None for a figure and a verdict for a contract."""

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


def with_dtype(plan: Plan, dtype: str, micro_batch: int) -> Plan:
    """The plan with other numerics."""
    numerics = plan.numerics.model_copy(update={"dtype": dtype, "micro_batch": micro_batch})
    return plan.model_copy(update={"numerics": numerics})


def pixels(engine: Engine, first: int, count: int) -> Pixels:
    """Samples [first, first + count)."""
    return np.concatenate([batch.pixels for batch in engine.batches(first, count)])


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
    for dtype in ("float32", "bfloat16"):
        for micro_batch in (128, 512):
            engine = Engine(bundle, with_dtype(plan, dtype, micro_batch), device)
            count = 4 * micro_batch
            rate = count * per_second(functools.partial(pixels, engine, 0, count), seconds)
            yield Row(f"{preset}: engine, {dtype}, micro-batch {micro_batch}", f"{rate:,.0f} samples/s")
        engine = Engine(bundle, with_dtype(plan, dtype, 128), device)
        whole = pixels(engine, 0, 1000)
        again = pixels(Engine(bundle, with_dtype(plan, dtype, 128), device), 0, 1000)
        pieces = np.concatenate([pixels(engine, first, 125) for first in range(0, 1000, 125)])
        yield Row(
            f"{preset}: {dtype} pixels equal when repeated",
            f"{(whole != again).sum()} differ",
            not (whole != again).any(),
        )
        yield Row(
            f"{preset}: {dtype} pixels equal for any cut",
            f"{(whole != pieces).sum()} differ",
            not (whole != pieces).any(),
        )
    here = pixels(Engine(bundle, with_dtype(plan, "float32", 128), device), 0, 500).astype(int)
    host = torch.device("cpu")
    there_plan = with_dtype(virtual_plan(bundle.info, 2**30, 0, host), "float32", 128)
    there = pixels(Engine(bundle, there_plan, host), 0, 500).astype(int)
    worst = int(np.abs(here - there).max())
    yield Row(f"{preset}: float32 pixels against the CPU's, largest difference", f"{worst} of 255", worst <= 2)


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
    """Run all checks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=8.0, help="per speed figure")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --device cpu runs the same checks on the CPU", file=sys.stderr)
        return 1
    device = pick_device(use_gpu=arguments.device == "cuda")
    rows = [
        row
        for preset in PRESETS
        for rows_of in (engine_rows, training_rows)
        for row in rows_of(preset, device, arguments.seconds)
    ]
    table = Table("check", "figure", "", title=f"{device_class(device)}, torch {torch.__version__}")
    for row in rows:
        table.add_row(row.what, row.value, "" if row.ok is None else "ok" if row.ok else "BROKEN")
    Console(width=120).print(table)
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
