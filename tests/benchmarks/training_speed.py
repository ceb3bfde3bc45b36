"""Images per second of `genworker train` on two workers, against the same networks in a plain torch loop with two threads.

    python -m tests.benchmarks.training_speed [SPEC ...] [--rounds N] [--images N]

Both train the same networks with the same losses, batch size and precision on the same images. The plain loop is what people
write: one process, images in memory, torch's own random numbers, no reports and no checkpoints. Rounds alternate; medians are
printed, with the share of time that each part of a genworker step takes (rank 0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import torch

from genworker import cluster, families
from genworker.config import load_spec
from genworker.device import resolve_precision
from genworker.families.base import Batch
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import record, trainer
from genworker.training.loader import images_of
from genworker.training.spec import TrainSpec

SPECS = ("fashion-tiny", "fashion-vae-tiny")
PARTS = ("data_wait", "forward", "backward", "all_reduce", "optimizer", "report", "checkpoint")


class PlainContext:
    """What losses ask for, as a plain loop would give it."""

    def __init__(self, count: int) -> None:
        self._count, self.progress = count, 0.0

    def noise(self, _stream: int, dim: int) -> torch.Tensor:
        return torch.randn(self._count, dim)

    def uniform(self, _stream: int, dim: int) -> torch.Tensor:
        return torch.rand(self._count, dim)

    def global_mean(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach()


def plain_loop(spec: TrainSpec, num_images: int) -> float:
    """Train for so many images in a plain loop; images per second after the first tenth."""
    torch.set_num_threads(2)
    source = open_source(spec.data)
    batch_size = spec.training.batch_size
    everything = source.read(torch.arange(min(len(source), 10_000)).numpy())
    images, labels = images_of(everything.pixels), torch.from_numpy(everything.labels)
    family = families.make(spec.family, source.schema)
    networks = family.build()
    phases = family.phases()
    optimizers = [
        torch.optim.Adam([p for name in phase.networks for p in networks[name].parameters()], lr=1e-3, fused=True)
        for phase in phases
    ]
    bf16 = resolve_precision(spec.training.precision, torch.device("cpu")) == torch.bfloat16
    context = PlainContext(batch_size)
    began, steps = 0.0, num_images // batch_size
    for step in range(steps + steps // 10):
        if step == steps // 10:
            began = time.perf_counter()
        rows = torch.randint(len(images), (batch_size,))
        batch = Batch(images[rows], labels[rows])
        for index, phase in enumerate(phases):
            if (step + 1) % phase.every:
                continue
            for name, network in networks.items():
                network.requires_grad_(name in phase.networks)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = phase.loss(networks, batch, context)["loss"]
            optimizers[index].zero_grad(set_to_none=True)
            loss.backward()
            optimizers[index].step()
    return steps * batch_size / (time.perf_counter() - began)


def with_genworker(spec: TrainSpec, folder: Path) -> tuple[float, dict[str, float]]:
    """Train for so many images on two workers; images per second after the first report, and the shares of its parts."""
    trainer.train(spec, str(folder))
    reports = record.read_metrics(open_store(str(folder)))[1:]
    seconds = sum(report["seconds"] for report in reports)
    images = sum(report["seconds"] * report["images_per_second"] for report in reports)
    shares = {
        part: sum(report.get(f"{part}_share", 0.0) * report["seconds"] for report in reports) / seconds
        for part in PARTS
    }
    return images / seconds, shares


def measure(name: str, rounds: int, num_images: int) -> None:
    """Print the rows of one spec."""
    changes = (
        f"training.images={num_images + 2_000}",
        "resources.workers=2",
        "evaluation.num_samples=0",
        "data.url=shipped",
    )
    spec = load_spec(TrainSpec, name, changes, {})
    plain, ours, shares = [], [], []
    for _ in range(rounds):
        plain.append(plain_loop(spec, num_images))
        with tempfile.TemporaryDirectory() as folder:
            rate, parts = with_genworker(spec, Path(folder))
        ours.append(rate)
        shares.append(parts)
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    print(f"\n{name}, batch {spec.training.batch_size}, {num_images:,} images, {rounds} rounds")
    print(f"| plain torch loop, 2 threads | {statistics.median(plain):,.0f} images/s |")
    print(f"| genworker train, 2 workers | {statistics.median(ours):,.0f} images/s |")
    print(f"| ratio (median of the rounds) | {ratio:.2f} |")
    parts = {part: statistics.median(row[part] for row in shares) for part in PARTS}
    print("| time of rank 0 | " + ", ".join(f"{part} {share:.1%}" for part, share in parts.items()) + " |")


def main() -> None:
    """Measure the specs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8_000, help="per measurement")
    arguments = parser.parse_args()
    with cluster.connect():
        for name in arguments.specs:
            measure(name, arguments.rounds, arguments.images)


if __name__ == "__main__":
    main()
