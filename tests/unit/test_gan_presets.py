"""The shipped GAN presets: each parses, builds networks that fit its images, and says in its comments what is true."""

from __future__ import annotations

import pytest
import torch

from genworker import families
from genworker.config import load_spec, preset_names, preset_path
from genworker.families.base import Batch
from genworker.schema import ImageSchema
from genworker.sources.base import ResizedConfig
from genworker.training.spec import TrainSpec
from tests.fakes import models
from tests.fakes.steps import Context


def presets() -> list[str]:
    """The names of all presets that train a GAN."""
    paths = {name: preset_path(name) for name in preset_names()}
    return [name for name, path in paths.items() if path is not None and "name: r3gan" in path.read_text()]


def schema_of(spec: TrainSpec) -> ImageSchema:
    """The images of a preset, without opening its data."""
    if isinstance(spec.data, ResizedConfig):
        return spec.data.image_schema(0, ())
    return ImageSchema(channels=1, height=28, width=28, num_classes=10)


def test_all_presets_are_there() -> None:
    """Two for a CPU, one for a GPU, two for several."""
    assert set(presets()) >= {"fashion-tiny", "fashion", "fashion-gpu", "image-64", "image-256"}


@pytest.mark.parametrize("name", presets())
def test_a_preset_builds_networks_for_its_images(name: str) -> None:
    """The networks of every preset can be built, of about the published size at most (without memory, on the meta device)."""
    spec = load_spec(TrainSpec, name, (), {})
    schema = schema_of(spec)
    with torch.device("meta"):
        networks = families.make(spec.family, schema).build()
    millions = {
        network: sum(parameter.numel() for parameter in networks[network].parameters()) / 1e6
        for network in ("generator", "discriminator")
    }
    print(f"{name}: generator {millions['generator']:.2f}M, discriminator {millions['discriminator']:.2f}M parameters")  # noqa: T201
    if name == "image-256":  # the published sizes for 256x256 images, arXiv:2501.05441, table 2
        assert millions == {
            "generator": pytest.approx(23.06, abs=0.005),
            "discriminator": pytest.approx(23.01, abs=0.005),
        }
    assert 0.1 < millions["discriminator"] < 30
    assert 0.5 < millions["generator"] < 30
    for stack in (networks["generator"].stack, networks["discriminator"].stack):
        assert stack.grid.padded >= (schema.height, schema.width)


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("fashion")])
def test_a_step_of_a_small_preset_works(name: str) -> None:
    """The losses of both phases are finite, with gradients for all weights that move."""
    spec = load_spec(TrainSpec, name, (), {})
    torch.manual_seed(0)
    family = families.make(spec.family, models.GREY)
    networks = family.build()
    batch = Batch(torch.zeros(2, 1, 28, 28), torch.tensor([0, 7]))
    for phase in family.phases():
        losses = phase.loss(networks, batch, Context(2))
        losses["loss"].backward()
        assert all(value.isfinite() for value in losses.values())
        for network in phase.networks:
            assert all(p.grad is not None for p in networks[network].parameters())
        networks.zero_grad()


@pytest.mark.parametrize("name", presets())
def test_schedules_run_over_the_whole_training(name: str) -> None:
    """The learning rate and the penalties fall, and beta2 rises, as in the recipe."""
    family = load_spec(TrainSpec, name, (), {}).family
    for key, rises in (("lr", False), ("gamma", False), ("beta2", True)):
        schedule = getattr(family, key)
        assert (schedule.at(1.0) > schedule.at(0.0)) is rises, key
