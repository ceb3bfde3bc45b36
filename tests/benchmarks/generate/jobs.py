"""Whole jobs: `generate`, and a plain script that saves files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.generate.clock import Clock, job_sizes, start_ray
from tests.benchmarks.generate.models import PLAIN_BATCH, pillow_pngs, plain_generator, plain_inputs

if TYPE_CHECKING:
    from pathlib import Path

ACTORS = 2


def ours(bundle: str, samples: int, folder: Path, *, cold: bool = False) -> dict[str, float]:
    """`generate` with two actors into a folder; ``cold`` runs the one job in a new cluster, as a command does."""
    from genworker.bulk.job import generate
    from genworker.bulk.request import GenerateSpec
    from genworker.reading import verify

    start_ray()
    found: dict[str, float] = {}
    for name, count in job_sizes(samples, cold=cold):
        out = folder / name
        with Clock(name, found):
            result = generate(GenerateSpec(bundle=bundle, out=str(out), num_samples=count, actors=ACTORS))
        found[f"{name}_making_seconds"] = result.making_seconds
    if not cold:
        assert verify(str(folder / "job")) == []
    return found


def script(bundle: str, samples: int, folder: Path) -> dict[str, float]:
    """A plain script: batches of 256 in float32 on all threads, one PNG file per image by Pillow."""
    import torch

    generator, classes = plain_generator(bundle)
    found: dict[str, float] = {}
    for name, total in job_sizes(samples, cold=False):
        place = folder / name
        place.mkdir()
        with Clock(name, found):
            for done in range(0, total, PLAIN_BATCH):
                count = min(PLAIN_BATCH, total - done)
                with torch.inference_mode():
                    images = generator(*plain_inputs(generator, classes, count))
                for number, png in enumerate(pillow_pngs(images)):
                    (place / f"{done + number:08d}.png").write_bytes(png)
    return found
