"""A small convolutional classifier for images of any shape, trained in about a minute on one core.

In: labelled images. Out: a network whose last layer but one gives 64 features, and whose last gives the classes. It is a
measuring instrument: the same data, seed and processor give the same weights, so it is trained on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from genworker.config import Spec
from genworker.device import threads
from genworker.errors import UsageError
from genworker.schema import ImageSchema, Int64Array, Pixels, SampleBatch

FEATURE_DIM = 64
_EVALUATION_BATCH = 250

Read = Callable[[Int64Array], SampleBatch]


class ClassifierConfig(Spec):
    """How a classifier is trained."""

    images: Annotated[int, Field(ge=1)] = Field(120_000, description="seen in training in all")
    max_epochs: Annotated[int, Field(ge=1)] = Field(8, description="fewer images are not seen more often than this")
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Annotated[float, Field(gt=0)] = Field(3e-3, description="highest learning rate of one rise and fall")
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    max_shift: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of its height and width by which an image is moved at most, anew whenever it is seen"
    )
    seed: Annotated[int, Field(ge=0)] = 0


class SmallConvNet(nn.Module):
    """Convolutions down to about 8 pixels, 64 features, and a linear layer to the classes where there are any."""

    def __init__(self, schema: ImageSchema) -> None:
        super().__init__()
        halvings = max(0, math.ceil(math.log2(min(schema.height, schema.width) / 8)))
        # The layer of 32 keeps its size: at 28x28 that is where most of the accuracy comes from.
        strides = [2] * max(0, halvings - 2) + [2 if halvings else 1, 1, 2 if halvings > 1 else 1]
        widths = [16] * max(0, halvings - 2) + [16, 32, 64]
        layers: list[nn.Module] = []
        channels, height, width = schema.image_shape
        for out, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels, height, width = out, -(-height // stride), -(-width // stride)
        self.features = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels * height * width, FEATURE_DIM), nn.ReLU()
        )
        self.head = nn.Linear(FEATURE_DIM, schema.num_classes) if schema.num_classes else None
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [n, 64] and logits [n, num_classes] (None without classes) of images [n, C, H, W]."""
        features = self.features(images)
        return features / self.get_buffer("scale"), None if self.head is None else self.head(features)

    @torch.no_grad()
    def set_scale(self, images: Tensor) -> None:
        """Scale features so that the mean of their variances over ``images`` is 1, which makes distances readable."""
        variance = self.features(images).var(0).mean()
        self.get_buffer("scale").copy_(variance.sqrt())


def to_images(pixels: Pixels) -> Tensor:
    """Turn pixels uint8 [n, H, W, C] into images float32 [n, C, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(127.5) - 1)


def train_classifier(read: Read, length: int, schema: ImageSchema, config: ClassifierConfig) -> SmallConvNet:
    """Train on the images that ``read`` gives for indices in [0, length), and return the network in evaluation mode.

    Raises:
        UsageError: the data has no classes, or fewer than two images.
    """
    if not schema.num_classes or length < 2:
        raise UsageError(
            f"classifier: {length} images of {schema.num_classes} classes; it is trained on labelled images, two at least"
        )
    batch_size = min(config.batch_size, length)
    steps = max(1, min(config.images, config.max_epochs * length) // batch_size)
    shifts = np.random.Generator(np.random.Philox([config.seed, 1]))  # not those of the order
    # Sums over a batch are then added in the same order everywhere.
    with threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = SmallConvNet(schema)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rise_and_fall((step + 1) / steps))
        for indices in _batches(length, batch_size, steps, config.seed):
            batch = read(indices)
            assert batch.labels is not None
            _, logits = network(to_images(_shifted(batch.pixels, config.max_shift, shifts)))
            loss = F.cross_entropy(logits, torch.from_numpy(batch.labels))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False).eval()


@torch.inference_mode()
def accuracy(network: SmallConvNet, labelled: Iterable[tuple[Pixels, Int64Array]]) -> float:
    """The share of images that the network gives their label."""
    right = seen = 0
    for pixels, labels in labelled:
        for start in range(0, len(pixels), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            _, logits = network(to_images(pixels[part]))
            assert logits is not None
            right += int((logits.argmax(1).numpy() == labels[part]).sum())
            seen += len(labels[part])
    return right / seen


def _rise_and_fall(progress: float) -> float:
    """Factor of the learning rate: up in the first fifth, down to zero along half a cosine."""
    if progress < 0.2:
        return progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def _shifted(pixels: Pixels, max_shift: float, rng: np.random.Generator) -> Pixels:
    """Move every image by a number of whole pixels drawn for it; its edge is repeated where it left."""
    height, width = pixels.shape[1:3]
    rows, columns = int(max_shift * height), int(max_shift * width)
    if not rows and not columns:
        return pixels
    padded = np.pad(pixels, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="edge")
    tops = rng.integers(0, 2 * rows, len(pixels), endpoint=True)
    lefts = rng.integers(0, 2 * columns, len(pixels), endpoint=True)
    moved = [
        image[top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return np.stack(moved)


def _batches(length: int, batch_size: int, steps: int, seed: int) -> Iterator[Int64Array]:
    """Indices of each step: epochs in random order, without what is left over at their end."""
    rng = np.random.Generator(np.random.Philox(seed))
    per_epoch = length // batch_size
    order = np.empty(0, np.int64)
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(length).astype(np.int64)
        first = step % per_epoch * batch_size
        yield order[first : first + batch_size]
