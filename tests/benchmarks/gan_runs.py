"""Training runs for the benchmarks of the GAN recipe: in this process, on one thread, resumed where they stopped.

In: a preset with changes, a source, a folder. Out: how the run went, and its averaged generator.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import torch

from genworker import bundle as bundles
from genworker.config import load_spec
from genworker.errors import TrainingError
from genworker.sampling.latents import latents
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import loop
from genworker.training.record import ALARMS_KEY, BUNDLE_PREFIX
from genworker.training.spec import TrainSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from genworker.sources.base import Source

CPU = torch.device("cpu")


def spec_of(preset: str, changes: Mapping[str, Any]) -> TrainSpec:
    """A preset with dotted keys changed."""
    return load_spec(TrainSpec, preset, (), dict(changes))


def run(spec: TrainSpec, folder: Path, source: Source | None = None, device: torch.device = CPU) -> dict[str, Any]:
    """Train, or finish what is in ``folder``; returns whether it finished, its alarms and its last report."""
    torch.set_num_threads(1)
    store = open_store(str(folder))
    began, cpu = time.monotonic(), time.process_time()

    def told(metrics: Mapping[str, Any]) -> None:
        shown = ("discriminator.real_sign", "discriminator.pair_sign", "discriminator.r1", "discriminator.r2")
        numbers = "  ".join(f"{name.split('.')[1]} {metrics[name]:.3g}" for name in shown if name in metrics)
        rate = metrics["images_per_second"]
        print(f"{folder.name}: {metrics['images_seen']} images, {rate:.0f}/s, {numbers}", flush=True)

    hooks = loop.Hooks(on_report=told, on_event=lambda text: print(f"{folder.name}: {text}", flush=True))
    last: dict[str, Any] = {}
    try:
        result = loop.train(
            spec,
            source or open_source(spec.data),
            store,
            rank=0,
            world_size=1,
            device=device,
            hooks=hooks,
        )
        finished, last, failure = result.finished, result.metrics, ""
    except TrainingError as err:
        finished, failure = False, str(err)
    lines = (folder / ALARMS_KEY).read_text().splitlines() if (folder / ALARMS_KEY).exists() else []
    return {
        "finished": finished,
        "failure": failure,
        "alarms": [json.loads(line) for line in lines],
        "rollbacks": last.get("rollbacks"),
        "nonfinite_steps": last.get("nonfinite_steps"),
        "report": {name: value for name, value in last.items() if isinstance(value, int | float)},
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


@torch.no_grad()
def samples(folder: Path, count: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Images [count, C, H, W] of a finished run's averaged generator, and their labels, balanced, where it has classes."""
    bundle = bundles.load(open_store(str(folder)), BUNDLE_PREFIX)
    generator, schema = bundle.generator(), bundle.info.image_schema
    z = torch.from_numpy(latents(seed, 0, count, generator.latent_dim))
    labels = None
    if bundle.info.family.conditional and schema.num_classes:
        labels = torch.arange(count) % schema.num_classes
    parts = []
    for start in range(0, count, 250):
        some = slice(start, start + 250)
        parts.append(generator(z[some], None if labels is None else labels[some]).clamp(-1, 1))
    return torch.cat(parts), labels
