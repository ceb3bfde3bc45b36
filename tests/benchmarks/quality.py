"""How good the samples of trained bundles are, beside the test split of the full Fashion-MNIST.

`python -m tests.benchmarks.quality runs/gan/bundle ... --out quality.json` prints for each bundle: the accuracy on real test
images of a classifier trained on samples alone, beside the same classifier trained on real images; and of 10,000 samples the
distances, precision, recall, density and coverage, beside what as many real training images score.

With `--toy` it first compares PRDC with the example in the README of clovaai's prdc, over several draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from genworker import bundle as bundles
from genworker import metrics
from genworker.bundle import Bundle
from genworker.metrics.classifier import accuracy
from genworker.metrics.prdc import prdc
from genworker.sources import open_source
from genworker.sources.fashion_mnist import FashionMnistConfig
from genworker.stores import open_store
from genworker.training import checkpoint
from genworker.training.best import averaged
from genworker.training.evaluation import evaluate
from genworker.training.extractors import get_extractor
from genworker.training.record import BUNDLE_PREFIX
from genworker.training.reference import RealImages, real_images
from genworker.training.spec import TrainSpec

HOLDOUT_SHARE = 0.02
COVERAGE_AIM = 0.9
ACCURACY_AIM = 0.04  # below the accuracy of the classifier that was trained on real images
EXTRACTOR_AIM = 0.9
PUBLISHED = {"precision": 0.477, "recall": 0.471, "density": 1.056, "coverage": 0.974}


def extractor_accuracy(real: RealImages, cache: str) -> float:
    """Accuracy on the test split of the classifier whose features are compared."""
    network = get_extractor(real, open_store(cache)).network
    labelled = [(batch.pixels, batch.labels) for batch in real.reference.batches() if batch.labels is not None]
    return accuracy(network, labelled)


def bundle_at(url: str) -> Bundle:
    """The bundle at a URL, or of a run there: a finished one's, else the averaged weights of its newest checkpoint."""
    store = open_store(url)
    for prefix in ("", BUNDLE_PREFIX):
        if any(store.list(prefix + bundles.BUNDLE_KEY)):
            return bundles.load(store, prefix)
    key = checkpoint.keys(store)[0]
    snapshot = checkpoint.read(store, key)
    spec = TrainSpec.parse(snapshot.identity, origin=key)
    return averaged(snapshot, key, spec, open_source(spec.data).schema)[0]


def quality(url: str, real: RealImages, cache: str, num_samples: int, num_synthetic: int) -> dict[str, Any]:
    """All numbers of one bundle, with their floors and cards."""
    bundle, store = bundle_at(url), open_store(cache)
    found = evaluate(bundle, real, num_samples=num_samples, cache=store).to_json()
    if num_synthetic and bundle.info.family.conditional:  # samples without labels train no classifier
        trained = evaluate(bundle, real, num_samples=num_synthetic, names=["cas"], cache=store).to_json()
        for part in ("metrics", "floor", "cards"):
            found[part] |= trained[part]
        found["seconds"] += trained["seconds"]
    lineage = bundle.info.lineage
    about = {"url": url, "bundle": bundle.digest, "family": bundle.info.family.name, "images_seen": lineage.images_seen}
    return about | {"source": lineage.source or "an unfinished run"} | found


def verdict(number: str, value: float, floor: float) -> str:
    """Whether an aim is met, where there is one."""
    if number == "coverage":
        met = value >= COVERAGE_AIM
        return f"aim {COVERAGE_AIM}: {'met' if met else 'missed'}"
    if number == "cas":
        met = value >= floor - ACCURACY_AIM
        return f"aim {floor - ACCURACY_AIM:.4f} (floor - {ACCURACY_AIM}): {'met' if met else 'missed'}"
    return ""


def table_of(found: dict[str, Any], num_samples: int, num_synthetic: int) -> Table:
    """The numbers of one bundle for people."""
    title = f"{found['url']}: {found['family']}, {found['images_seen']:,} images seen of {found['source']}"
    table = Table(title=f"{title}; {num_samples:,} samples, cas {num_synthetic:,}", title_justify="left")
    for name in ("number", "value", "floor", "better", "aim"):
        table.add_column(name)
    better = metrics.numbers()
    for number, value in found["metrics"].items():
        floor = found["floor"][number]
        table.add_row(number, f"{value:.4f}", f"{floor:.4f}", better[number], verdict(number, value, floor))
    return table


def toy_example(draws: int) -> dict[str, list[float]]:
    """PRDC with k = 5 of two times 10,000 draws of N(0, I) in 1,000 dimensions, several times over."""
    found: dict[str, list[float]] = {name: [] for name in PUBLISHED}
    for seed in range(draws):
        random = np.random.default_rng(seed)
        x, y = random.normal(size=(2, 10_000, 1_000))
        for name, value in prdc(x, y, 5).items():
            found[name].append(value)
    return found


def main() -> None:
    """Measure, print, and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("bundles", nargs="*", help="URLs of bundles, or of runs")
    parser.add_argument("--num-samples", type=int, default=10_000, help="for all but the trained classifier")
    parser.add_argument(
        "--synthetic", type=int, default=60_000, help="samples that a classifier is trained on; 0: none"
    )
    parser.add_argument("--cache", default="runs/quality", help="URL where the extractor is kept")
    parser.add_argument("--toy", type=int, default=0, metavar="DRAWS", help="compare PRDC with its published example")
    parser.add_argument("--out", type=Path, default=Path("quality.json"))
    args = parser.parse_args()
    console = Console(width=140)
    outcome: dict[str, Any] = {}
    if args.toy:
        outcome["toy"] = toy_example(args.toy)
        for name, values in outcome["toy"].items():
            spread = f"{np.mean(values):.3f} +- {np.std(values):.3f} over {args.toy} draws"
            console.print(f"prdc example: {name} {spread}, published {PUBLISHED[name]}")
    real = real_images(FashionMnistConfig(), HOLDOUT_SHARE, "test")
    outcome["extractor_accuracy"] = extractor_accuracy(real, args.cache)
    met = "met" if outcome["extractor_accuracy"] >= EXTRACTOR_AIM else "missed"
    console.print(f"extractor: test accuracy {outcome['extractor_accuracy']:.4f}, aim {EXTRACTOR_AIM}: {met}")
    outcome["bundles"] = []
    for url in args.bundles:
        outcome["bundles"].append(quality(url, real, args.cache, args.num_samples, args.synthetic))
        console.print(table_of(outcome["bundles"][-1], args.num_samples, args.synthetic))
        args.out.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    args.out.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
