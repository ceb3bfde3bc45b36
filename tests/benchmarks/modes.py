"""Mode collapse, counted: three random Fashion-MNIST images stacked as red, green and blue make 1,000 kinds of image.

`python -m tests.benchmarks.modes --out FOLDER` trains unconditional generators on such stacks, classifies 26,000 samples
channel by channel, and counts the kinds that occur (Metz et al. 2017, arXiv:1611.02163; the protocol of Lin et al. 2018,
"PacGAN"). Arms share data, networks and length. Run it again to go on. `--preset fashion-gpu --gpu` for one GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from genworker.config import digest_of
from genworker.metrics.modes import reverse_kl
from genworker.report.sheet import Block, contact_sheet
from genworker.sampling.latents import raw_words
from genworker.sampling.pixels import quantise
from genworker.schema import ImageSchema, Int64Array, SampleBatch
from genworker.sources.arrays import ArraySource
from genworker.sources.base import SourceConfig
from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource
from tests.benchmarks import gan_runs
from tests.benchmarks.classifier import Classifier, classifier

NUM_STACKS, NUM_SAMPLES, NUM_MODES = 128_000, 26_000, 1_000
ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "control": {"family.loss": "non_saturating", "family.r2": False},
    "recipe-pac2": {"family.pac": 2},
}


class Stacked(ArraySource):
    """128,000 stacks of three training images each, drawn once and for all."""

    Config: ClassVar[type[SourceConfig]] = FashionMnistConfig

    def __init__(self, config: FashionMnistConfig) -> None:
        single = FashionMnistSource(config)
        everything = single.read(np.arange(len(single), dtype=np.int64))
        assert everything.labels is not None
        self._singles, self._classes = everything.pixels, everything.labels
        self._chosen = (raw_words(0, 3, 0, NUM_STACKS, 3) % np.uint64(len(single))).astype(np.int64)
        self.schema = ImageSchema(channels=3, height=28, width=28)
        self.corrupt = []

    def __len__(self) -> int:
        return NUM_STACKS

    def read(self, indices: Int64Array) -> SampleBatch:
        """Stacks by number; see `genworker.sources.base.Source`."""
        chosen = self._chosen[indices]
        pixels = np.concatenate([self._singles[chosen[:, channel]] for channel in range(3)], axis=3)
        return SampleBatch(indices, pixels, None)

    def digest(self) -> str:
        """Of the choice of images."""
        return digest_of(["stacked-fashion-mnist", NUM_STACKS])

    def kinds(self) -> Int64Array:
        """The true kinds of all stacks."""
        return kind_of(self._classes[self._chosen])


def kind_of(classes: Int64Array) -> Int64Array:
    """Classes of the three channels [N, 3] to kinds [N] in [0, 1000)."""
    return classes[:, 0] * 100 + classes[:, 1] * 10 + classes[:, 2]


@torch.no_grad()
def kinds(network: Classifier, images: torch.Tensor) -> Int64Array:
    """The kind of each image [N, 3, 28, 28] as the classifier sees it, in [0, 1000)."""
    found = np.zeros(len(images), np.int64)
    for start in range(0, len(images), 500):
        part = images[start : start + 500]
        classes = network(part.reshape(-1, 1, 28, 28)).argmax(1).reshape(-1, 3)
        found[start : start + 500] = kind_of(classes.numpy())
    return found


def histogram(found: Int64Array) -> Int64Array:
    """How often each kind occurs."""
    return np.bincount(found, minlength=NUM_MODES).astype(np.int64)


def row_of(arm: str, arguments: argparse.Namespace, network: Classifier, source: Stacked) -> dict[str, Any]:
    """One run, from its row if it is done."""
    path = arguments.out / f"{arm}.json"
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        return row
    changes = {
        "family.conditional": False,
        "training.images": arguments.images,
        "training.callbacks": (),
        "data.url": None,
        "evaluation.num_samples": 0,
    }
    spec = gan_runs.spec_of(arguments.preset, changes | ARMS[arm])
    device = torch.device("cuda" if arguments.gpu else "cpu")
    row = gan_runs.run(spec, arguments.out / arm, source, device)
    row["images"] = spec.training.images
    if row["finished"]:
        images, _ = gan_runs.samples(arguments.out / arm, NUM_SAMPLES)
        counts = histogram(kinds(network, images))
        row |= {"modes": int((counts > 0).sum()), "reverse_kl": reverse_kl(counts, np.ones(NUM_MODES, np.int64))}
        sheet = contact_sheet(
            Block(quantise(images[:160])), per_row=16, title=f"{arm}, {row['images']} images", scale=2
        )
        sheet.save(arguments.out / f"{arm}.png")
    path.write_text(json.dumps(row, indent=1))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for runs, rows and pictures; run again to go on"
    )
    parser.add_argument("--preset", default="fashion-tiny", help="networks and schedules")
    parser.add_argument("--images", type=int, help="images per run instead of the preset's")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["recipe", "control"])
    parser.add_argument("--gpu", action="store_true", help="train on the GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    network, accuracy = classifier(arguments.out.parent / "judge")
    source = Stacked(FashionMnistConfig(url=None))
    truth = histogram(source.kinds())
    some = np.arange(NUM_SAMPLES, dtype=np.int64)
    pixels = torch.from_numpy(source.read(some).pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    seen = histogram(kinds(network, pixels))
    print(f"classifier's test accuracy {accuracy:.4f}; kinds among all stacks {int((truth > 0).sum())}")
    lines = [
        "| arm | images | modes of 1,000 | reverse KL | alarms |",
        "|---|---|---|---|---|",
        f"| real stacks | | {int((seen > 0).sum())} | {reverse_kl(seen, np.ones(NUM_MODES, np.int64)):.3f} | |",
    ]
    for arm in arguments.arms:
        row = row_of(arm, arguments, network, source)
        result = f"{row['modes']} | {row['reverse_kl']:.3f}" if row["finished"] else "did not finish |"
        lines.append(f"| {arm} | {row['images']} | {result} | {len(row['alarms'])} |")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
