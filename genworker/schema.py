"""What one sample is, and the arrays in which samples travel.

Three words hold everywhere. **images**: float32 tensors [N, C, H, W] in [-1, 1], what networks see. **pixels**: uint8
arrays [N, H, W, C], what codecs and sources see. **labels**: int64 [N]. This module knows numpy and nothing heavier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Pixels = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class ImageSchema(BaseModel):
    """The shape of every image of a dataset, and its classes.

    ``num_classes`` 0 means unlabelled. ``class_names`` is empty or holds one name per class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Annotated[int, Field(ge=1, le=4)]
    height: Annotated[int, Field(ge=1, le=2**17)]
    width: Annotated[int, Field(ge=1, le=2**17)]
    num_classes: Annotated[int, Field(ge=0, le=2**24)] = 0
    class_names: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width), the shape of one image tensor."""
        return self.channels, self.height, self.width

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """(height, width, channels), the shape of one pixel array."""
        return self.height, self.width, self.channels

    def describe(self) -> str:
        """A short text for messages, such as ``28x28x1, 10 classes``."""
        classes = f"{self.num_classes} classes" if self.num_classes else "unlabelled"
        return f"{self.height}x{self.width}x{self.channels}, {classes}"


@dataclass(frozen=True)
class Extras:
    """What a dataset stores of each sample beside index, image and label.

    Attributes:
        latent_dim: how many latents; 0 where they are not stored.
        score: whether the discriminator's score is stored.
    """

    latent_dim: int = 0
    score: bool = False


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class SampleBatch:
    """Consecutive or scattered samples of one schema.

    Attributes:
        sample_index: int64 [N], the position of each sample in its dataset.
        pixels: uint8 [N, H, W, C].
        labels: int64 [N] in [0, num_classes), or None for unlabelled data.
        latents: float32 [N, latent_dim], what the samples were generated from, or None.
        scores: float32 [N], how real the discriminator holds the samples to be, or None.
    """

    sample_index: Int64Array
    pixels: Pixels
    labels: Int64Array | None
    latents: Float32Array | None = None
    scores: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.sample_index)

    def part(self, first: int, stop: int) -> SampleBatch:
        """Rows [first, stop) as views."""
        return SampleBatch(
            self.sample_index[first:stop],
            self.pixels[first:stop],
            None if self.labels is None else self.labels[first:stop],
            None if self.latents is None else self.latents[first:stop],
            None if self.scores is None else self.scores[first:stop],
        )
