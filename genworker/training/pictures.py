"""Pictures of a run: a grid of samples from fixed latents, made again at every checkpoint, so that they can be compared.

In: the averaged networks and a seed. Out: one uint8 array, and PNG bytes under ``samples/``. Nothing here changes a network.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from genworker import families
from genworker.report.sheet import opaque
from genworker.sampling.latents import latents
from genworker.sampling.pixels import quantise
from genworker.training import numbered
from genworker.training.record import SAMPLES_PREFIX

if TYPE_CHECKING:
    from genworker.families.base import FamilyConfig, Networks
    from genworker.schema import ImageSchema, Pixels

_MAX_SIDE = 10  # images
_MAX_SIDE_PIXELS = 1_280  # of the whole grid, unless two images are larger already
_GAP = 2
_PAPER = 255
_MICRO_BATCH_PIXELS = 2**18  # bounds the memory that a grid needs beside training


def sample_grid(networks: Networks, family: FamilyConfig, schema: ImageSchema, seed: int) -> Pixels:
    """Generate a grid of samples, the same latents and labels for the same seed.

    Args:
        networks: the family's served sub-networks, averaged; their mode and device stay as they are.
        family: the ``family`` part of the spec.
        schema: of the images.
        seed: of the latents.

    Returns:
        uint8 [H, W, C], C = 1 for grey images and 3 for all others. Up to 10 x 10 images, fewer when they are large; one
        row per class (the first ones when there are more) if the model knows classes.
    """
    num_classes = schema.num_classes if family.conditional else 0
    rows = _side(schema.height, min(num_classes or _MAX_SIDE, _MAX_SIDE))
    columns = _side(schema.width, _MAX_SIDE)
    device = next(networks.parameters()).device
    z = torch.from_numpy(latents(seed, 0, rows * columns, family.latent_dim))
    labels = torch.arange(rows).repeat_interleave(columns)
    generator = families.make(family, schema).generator(networks)
    was_training = networks.training
    networks.eval()
    size = max(1, _MICRO_BATCH_PIXELS // (schema.height * schema.width))
    pixels = []
    try:
        with torch.inference_mode():
            for first in range(0, len(z), size):
                part = labels[first : first + size].to(device) if num_classes else None
                pixels.append(quantise(generator(z[first : first + size].to(device), part)))
    finally:
        networks.train(was_training)
    return tile(np.concatenate(pixels), columns)


def tile(pixels: Pixels, columns: int) -> Pixels:
    """Put images uint8 [N, H, W, C] into a grid, row by row, with a white gap between them; uint8 [H', W', 1 or 3]."""
    tiles = opaque(pixels)
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    shape = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels
    grid = np.full(shape, _PAPER, np.uint8)
    for index, image in enumerate(tiles):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def png_bytes(pixels: Pixels) -> bytes:
    """Pixels uint8 [H, W, 1 or 3] as a PNG."""
    data = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(data, format="PNG")
    return data.getvalue()


def key_of(images_seen: int) -> str:
    """Where the picture of a run lies in its store."""
    return numbered.key_of(SAMPLES_PREFIX, images_seen, ".png")


def _side(length: int, wanted: int) -> int:
    """How many images of ``length`` pixels stand side by side."""
    return max(1, min(wanted, max(2, _MAX_SIDE_PIXELS // (length + _GAP))))
