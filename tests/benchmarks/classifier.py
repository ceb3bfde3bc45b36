"""A small classifier of single Fashion-MNIST images, the judge of the benchmarks on modes and stability.

In: the full training split. Out: a network with a feature layer, and its accuracy on the test split, kept as safetensors in a
folder and trained once. It never sees a generated image.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.sources.fashion_mnist import FashionMnistConfig, FashionMnistSource
from genworker.training.loader import images_of

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS, BATCH, LR = 4, 128, 3e-3
NUM_FEATURES = 128


class Classifier(nn.Module):
    """Three convolutions, one feature layer, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in [(1, 32), (32, 64), (64, 128)]])
        self.features_layer = nn.Linear(128 * 9, NUM_FEATURES)
        self.end = nn.Linear(NUM_FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """Map images [N, 1, 28, 28] in [-1, 1] to features [N, 128]."""
        x = images
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        return F.relu(self.features_layer(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, 1, 28, 28] to logits [N, 10]."""
        logits: Tensor = self.end(F.dropout(self.features(images), 0.3, self.training))
        return logits


def read_images(split: str) -> tuple[Tensor, Tensor]:
    """All images [N, 1, 28, 28] and labels of a split of the full Fashion-MNIST."""
    source = FashionMnistSource(FashionMnistConfig(url=None, split=split))
    batch = source.read(np.arange(len(source), dtype=np.int64))
    assert batch.labels is not None
    return images_of(batch.pixels), torch.from_numpy(batch.labels)


@torch.no_grad()
def batched(function: nn.Module, images: Tensor, size: int = 500) -> Tensor:
    """Apply a function to images in pieces."""
    return torch.cat([function(images[start : start + size]) for start in range(0, len(images), size)])


def classifier(folder: Path) -> tuple[Classifier, float]:
    """The classifier and its test accuracy, read from ``folder`` or trained (some minutes) and left there."""
    network, path = Classifier(), folder / "classifier.safetensors"
    if path.exists():
        network.load_state_dict(safetensors.torch.load_file(path))
        return network.eval(), float(json.loads((folder / "classifier.json").read_text())["test_accuracy"])
    torch.manual_seed(0)
    network = Classifier()
    images, labels = read_images("train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    steps = EPOCHS * (len(images) // BATCH)
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images))
        chosen = order[step % (len(images) // BATCH) * BATCH :][:BATCH]
        optimizer.param_groups[0]["lr"] = LR * min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"classifier: step {step} of {steps}", flush=True)
    network.eval()
    test_images, test_labels = read_images("test")
    accuracy = float((batched(network, test_images).argmax(1) == test_labels).float().mean())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classifier.json").write_text(json.dumps({"test_accuracy": accuracy, "epochs": EPOCHS}))
    safetensors.torch.save_file(network.state_dict(), path)
    return network, accuracy
