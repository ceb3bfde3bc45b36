"""Pictures of a run: fixed latents, one row per class, and nothing changed in the networks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genworker import families
from genworker.sampling.latents import latents
from genworker.sampling.pixels import quantise
from genworker.schema import ImageSchema
from genworker.training.pictures import png_bytes, sample_grid, tile
from tests.fakes import models

GREY = ImageSchema(channels=1, height=8, width=6, num_classes=3)


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_each_cell_is_the_generator_at_its_latent_and_class(name: str) -> None:
    """Row r, column c shows sample 10 r + c of the seed, in class r."""
    config = models.family_config(name)
    networks = models.networks_of(config, GREY)
    networks.train()
    before = {key: tensor.clone() for key, tensor in networks.state_dict().items()}
    grid = sample_grid(networks, config, GREY, seed=5)
    assert grid.shape == (3 * 8 + 2 * 2, 10 * 6 + 9 * 2, 1)
    assert grid.dtype == np.uint8
    z = torch.from_numpy(latents(5, 0, 30, config.latent_dim))
    labels = torch.arange(3).repeat_interleave(10)
    networks.eval()
    with torch.no_grad():
        images = families.make(config, GREY).generator(networks)(z, labels)
    networks.train()
    expected = quantise(images)
    for index in (0, 9, 10, 29):
        top, left = index // 10 * 10, index % 10 * 8
        assert np.abs(grid[top : top + 8, left : left + 6].astype(int) - expected[index]).max() <= 1
    assert networks.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in networks.state_dict().items())
    assert not any(tensor.is_inference() for tensor in networks.state_dict().values())


def test_the_same_seed_gives_the_same_picture_and_another_another() -> None:
    """So that pictures of a run can be compared over time."""
    config = models.family_config("r3gan")
    networks = models.networks_of(config, GREY)
    first = sample_grid(networks, config, GREY, seed=1)
    assert np.array_equal(first, sample_grid(networks, config, GREY, seed=1))
    assert not np.array_equal(first, sample_grid(networks, config, GREY, seed=2))


@pytest.mark.parametrize(
    ("schema", "rows", "columns"),
    [
        (ImageSchema(channels=1, height=8, width=8), 10, 10),
        (ImageSchema(channels=1, height=8, width=8, num_classes=40), 10, 10),
        (ImageSchema(channels=1, height=256, width=128, num_classes=2), 2, 9),
        (ImageSchema(channels=1, height=700, width=8), 2, 10),
    ],
)
def test_the_grid_is_ten_by_ten_or_smaller(schema: ImageSchema, rows: int, columns: int) -> None:
    """Large images make fewer cells, classes make rows."""
    config = models.family_config("vae")
    networks = models.networks_of(config, schema)
    grid = sample_grid(networks, config, schema, seed=0)
    assert grid.shape[:2] == (rows * (schema.height + 2) - 2, columns * (schema.width + 2) - 2)


def test_an_unconditional_model_of_labelled_data_makes_a_plain_grid() -> None:
    """Its rows are no classes."""
    config = models.family_config("r3gan", conditional=False)
    grid = sample_grid(models.networks_of(config, GREY), config, GREY, seed=0)
    assert grid.shape == (10 * 10 - 2, 10 * 8 - 2, 1)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 3), (3, 3), (4, 3)])
def test_any_number_of_channels_becomes_a_png(channels: int, shown: int) -> None:
    """Transparent images lie on a checkerboard; the PNG holds the same pixels."""
    pixels = np.full((5, 4, 4, channels), 255, np.uint8)
    if channels in {2, 4}:
        pixels[..., -1] = 0
    grid = tile(pixels, columns=3)
    assert grid.shape == (2 * 6 - 2, 3 * 6 - 2, shown)
    cell = grid[:4, :4]
    assert (cell == 255).all() == (channels in {1, 3})
    image = np.asarray(Image.open(io.BytesIO(png_bytes(grid))))
    assert np.array_equal(image if image.ndim == 3 else image[:, :, None], grid)
    assert (grid[6:, 12:] == 255).all()  # the sixth cell is empty paper
