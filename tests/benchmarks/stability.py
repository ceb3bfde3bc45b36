"""Does the GAN recipe hold: the same preset from many seeds, beside a control with the loss and penalty it replaces.

`python -m tests.benchmarks.stability --out FOLDER` trains ``fashion-tiny`` from ten seeds (relativistic loss, R1 and R2) and
from some with the control (non-saturating loss, R1 alone), with the watchdog on, and prints a table. Run it again to go on.
Distances are between features of a classifier (`tests.benchmarks.classifier`) of 2,000 generated and the 10,000 test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from genworker.metrics.base import Observed
from genworker.metrics.frechet import Frechet
from genworker.metrics.prdc import PrecisionRecall
from genworker.report.sheet import Block, contact_sheet
from genworker.sampling.pixels import quantise
from tests.benchmarks import gan_runs
from tests.benchmarks.classifier import Classifier, classifier, read_images

ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "control": {"family.loss": "non_saturating", "family.r2": False},
}
NUM_SAMPLES = 2_000


@torch.no_grad()
def observe(network: Classifier, images: torch.Tensor) -> Observed:
    """Images with the classifier's features and classes."""
    features = torch.cat([network.features(images[start : start + 500]) for start in range(0, len(images), 500)])
    classes = network.end(features).argmax(1)
    return Observed(quantise(images), None, features.numpy(), classes.numpy())


def measure(network: Classifier, folder: Path, real: Observed) -> dict[str, float]:
    """Frechet distance, coverage and the share of samples that the classifier takes for what they were made for."""
    images, labels = gan_runs.samples(folder, NUM_SAMPLES)
    made = observe(network, images)
    numbers: dict[str, float] = {}
    for metric in (Frechet(10), PrecisionRecall(10)):
        metric.update(real, real=True)
        metric.update(made, real=False)
        numbers |= metric.compute()
    assert labels is not None
    assert made.classes is not None
    numbers["label_accuracy"] = float((made.classes == labels.numpy()).mean())
    sheet = contact_sheet(Block(made.pixels, labels.numpy()), per_row=16, title=folder.name, scale=2)
    sheet.save(folder.parent / f"{folder.name}.png")
    return numbers


def row_of(arm: str, seed: int, arguments: argparse.Namespace, network: Classifier, real: Observed) -> dict[str, Any]:
    """One run, from its row if it is done."""
    path = arguments.out / f"{arm}-{seed}.json"
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        return row
    changes = {"seed": seed, "training.images": arguments.images, "training.callbacks": ()} | ARMS[arm]
    folder = arguments.out / f"{arm}-{seed}"
    row = gan_runs.run(gan_runs.spec_of(arguments.preset, changes), folder)
    if row["finished"]:
        row |= measure(network, folder, real)
    path.write_text(json.dumps(row, indent=1))
    return row


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """The outcome in Markdown."""
    lines = [
        "| arm | seeds | finished | runs with alarms | rollbacks | FD, mean (worst) | recall | coverage | "
        "label accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in rows.items():
        done = [row for row in runs if row["finished"]]
        cells = [arm, len(runs), len(done), sum(bool(row["alarms"]) for row in runs)]
        cells.append(sum(row["rollbacks"] or 0 for row in runs))
        if done:
            distances = [row["frechet"] for row in done]
            cells += [
                f"{statistics.mean(distances):.1f} ({max(distances):.1f})",
                *(
                    f"{statistics.mean(row[name] for row in done):.3f}"
                    for name in ("recall", "coverage", "label_accuracy")
                ),
            ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for runs, rows and pictures; run again to go on"
    )
    parser.add_argument("--preset", default="fashion-tiny")
    parser.add_argument("--seeds", type=int, default=10, help="of the recipe")
    parser.add_argument("--control-seeds", type=int, default=3)
    parser.add_argument("--images", type=int, help="images per run instead of the preset's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    network, accuracy = classifier(arguments.out.parent / "judge")
    test_images, _ = read_images("test")
    train_images, _ = read_images("train")
    real = observe(network, test_images)
    floor = Frechet(10)
    floor.update(real, real=True)
    floor.update(observe(network, train_images[:NUM_SAMPLES]), real=False)
    rows: dict[str, list[dict[str, Any]]] = {}
    # Both arms in turn, so that an unfinished benchmark has rows of both.
    for seed in range(max(arguments.seeds, arguments.control_seeds)):
        for arm, count in (("recipe", arguments.seeds), ("control", arguments.control_seeds)):
            if seed < count:
                rows.setdefault(arm, []).append(row_of(arm, seed, arguments, network, real))
                print(table(rows), flush=True)
    print(
        f"\nclassifier's test accuracy {accuracy:.4f}; FD of {NUM_SAMPLES} training images {floor.compute()['frechet']:.2f}"
    )
    for arm, runs in rows.items():
        for seed, row in enumerate(runs):
            for alarm in row["alarms"]:
                print(f"{arm}, seed {seed}: {alarm}")


if __name__ == "__main__":
    main()
