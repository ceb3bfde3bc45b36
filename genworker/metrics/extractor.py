"""What turns images into features: a classifier trained on the real images, or a random network where there are no labels.

In: pixels. Out: `Observed` batches. An extractor is saved as safetensors, and the digest of those bytes is on every card.
There is no network here that saw other data than the user's own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import safetensors
import safetensors.torch
import torch

from genworker.config import canonical_json
from genworker.device import threads
from genworker.errors import UsageError
from genworker.metrics.base import Observed
from genworker.metrics.classifier import (
    FEATURE_DIM,
    ClassifierConfig,
    Read,
    SmallConvNet,
    to_images,
    train_classifier,
)
from genworker.schema import ImageSchema, Int64Array, Pixels

_HEADER_KEY = "genworker"
_BATCH = 250
_CALIBRATION_IMAGES = 1_000


@dataclass(frozen=True)
class Extractor:
    """A network and what it is called: ``classifier-64`` or ``random-64``."""

    name: str
    schema: ImageSchema
    network: SmallConvNet = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart; 0 for a random network."""
        return 0 if self.network.head is None else self.network.head.out_features

    def to_bytes(self) -> bytes:
        """The extractor as safetensors; equal extractors give equal bytes."""
        about = canonical_json({"name": self.name, "schema": self.schema.model_dump(mode="json")})
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        return safetensors.torch.save(tensors, metadata={_HEADER_KEY: about})

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @torch.inference_mode()
    def observe(self, pixels: Pixels, labels: Int64Array | None) -> Observed:
        """Features and classes of pixels uint8 [n, H, W, C].

        Raises:
            UsageError: the images have another shape than those that the extractor was made for.
        """
        if pixels.shape[1:] != self.schema.pixel_shape:
            raise UsageError(
                f"extractor {self.name} was made for images of {self.schema.describe()}, these have shape "
                f"{pixels.shape[1:]}; evaluate a generator with the data that it was trained on"
            )
        features = np.empty((len(pixels), FEATURE_DIM), np.float32)
        classes = np.empty(len(pixels), np.int64)
        # One thread and batches of one size: the same images give the same features wherever they stand.
        with threads(1):
            for start in range(0, len(pixels), _BATCH):
                part = slice(start, start + _BATCH)
                values, logits = self.network(to_images(pixels[part]))
                features[part] = values.numpy()
                if logits is not None:
                    classes[part] = logits.argmax(1).numpy()
        return Observed(pixels, labels, features, classes if self.num_classes else None)


def train_extractor(read: Read, length: int, schema: ImageSchema, config: ClassifierConfig) -> Extractor:
    """A classifier of the labelled images that ``read`` gives; its features are those of its last layer but one."""
    network = train_classifier(read, length, schema, config)
    with threads(1):
        network.set_scale(_calibration_images(read, length))
    return Extractor(f"classifier-{FEATURE_DIM}", schema, network)


def random_extractor(read: Read, length: int, schema: ImageSchema, seed: int = 0) -> Extractor:
    """A network with seeded random weights, for data without labels; it knows nothing of what the images show.

    Some real images set its normalisation.
    """
    with threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallConvNet(schema.model_copy(update={"num_classes": 0, "class_names": ()}))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the average over all that it sees
        images = _calibration_images(read, length)
        with torch.no_grad():
            network.train()
            network(images)
            network.eval()
        network.set_scale(images)
    return Extractor(f"random-{FEATURE_DIM}", schema, network.requires_grad_(False))


def _calibration_images(read: Read, length: int) -> torch.Tensor:
    """Up to 1,000 images from all over the data, [n, C, H, W]."""
    count = min(length, _CALIBRATION_IMAGES)
    return to_images(read(np.arange(count, dtype=np.int64) * length // count).pixels)


def load_extractor(data: bytes) -> Extractor:
    """The extractor that `Extractor.to_bytes` gave. Raises UsageError when the bytes are something else."""
    try:
        about = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_HEADER_KEY])
        schema = ImageSchema.model_validate(about["schema"])
        classes = (
            schema if str(about["name"]).startswith("classifier") else schema.model_copy(update={"num_classes": 0})
        )
        network = SmallConvNet(classes)
        network.load_state_dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as err:
        raise UsageError(
            f"is not an extractor of this version of genworker, delete it to have it made again: {err}"
        ) from err
    return Extractor(about["name"], schema, network.requires_grad_(False).eval())
