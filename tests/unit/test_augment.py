"""Augmentation of what a discriminator sees: identity at p 0, exact blits, derivatives of any order, and a p that adapts."""

from __future__ import annotations

import pytest
import torch

from genworker.config import load_spec
from genworker.errors import UsageError
from genworker.families.augment import NUM_UNIFORMS, Augment, AugmentConfig
from genworker.families.augment_operations import Draw, cut_out, inverse_affine, recolour, resample
from genworker.families.base import Cosine
from genworker.families.r3gan_config import R3GANConfig
from genworker.sampling.latents import uniforms
from genworker.training.spec import TrainSpec

GROUPS = ["blit", "geometry", "colour", "cutout"]
SHAPES = [(1, 28, 28), (3, 16, 16), (3, 9, 14), (2, 5, 7), (4, 8, 8), (1, 1, 1)]


def augment(p: float, *groups: str) -> Augment:
    """An augmentation of strength p, of all groups if none are named."""
    module = Augment(AugmentConfig.parse({"groups": groups or GROUPS}, origin="test"))
    module.p.fill_(p)
    return module


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniforms(seed, 16, 0, count, NUM_UNIFORMS))


def images(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_without_strength_nothing_changes(shape: tuple[int, int, int]) -> None:
    """At p 0 every image comes back, bit for bit."""
    x = images(6, shape)
    assert torch.equal(augment(0.0)(x, draws(6)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_keep_their_shape_and_stay_finite(shape: tuple[int, int, int]) -> None:
    """At full strength, whatever the number of channels and the size, odd, oblong or a single pixel."""
    x = images(64, shape)
    out = augment(1.0)(x, draws(64))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert not torch.equal(out, x)


def test_an_image_depends_on_its_own_numbers_only() -> None:
    """Rows are independent: the same image and numbers give the same result in any company."""
    module, x, u = augment(0.7), images(8, (3, 12, 12)), draws(8)
    whole = module(x, u)
    alone = torch.cat([module(x[row : row + 1], u[row : row + 1]) for row in range(8)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)


def test_blits_move_pixels_and_invent_none() -> None:
    """Mirrors, quarter turns and whole-pixel shifts show values of the original only, at every strength."""
    x = images(50, (1, 16, 16))
    out = augment(1.0, "blit")(x, draws(50))
    for before, after in zip(x, out, strict=True):
        distance = (after.reshape(-1, 1) - before.reshape(1, -1)).abs().min(1).values
        assert distance.max() < 1e-5


def test_a_mirror_and_a_turn_are_the_ones_of_torch() -> None:
    """Numbers chosen to ask for one operation give exactly what flip and rot90 give."""
    x = images(1, (3, 8, 8))
    off, on = 0.99, 0.0
    u = torch.full((1, NUM_UNIFORMS), off)
    u[0, 0], u[0, 1] = on, 0.9  # the gate of the mirror, and "yes"
    size = x.shape[2:]
    half = torch.tensor(0.5)
    mirrored = resample(x, inverse_affine(Draw(u, half), size, blit=True, geometry=False))
    torch.testing.assert_close(mirrored, x.flip(3), rtol=0, atol=1e-6)
    u = torch.full((1, NUM_UNIFORMS), off)
    u[0, 2], u[0, 3] = on, 0.3  # one quarter turn
    turned = resample(x, inverse_affine(Draw(u, half), size, blit=True, geometry=False))
    assert any(torch.allclose(turned, x.rot90(k, (2, 3)), atol=1e-6) for k in (1, 3))


def test_oblong_images_are_not_turned_by_a_quarter() -> None:
    """A quarter turn would bring in what lies outside; half turns stay."""
    u = draws(200)
    matrices = inverse_affine(Draw(u, torch.tensor(1.0)), torch.Size([8, 12]), blit=True, geometry=False)
    assert (matrices[:, 0, 1] == 0).all()
    assert (matrices[:, 0, 0] == -1).any()


def test_the_share_of_changed_images_is_p() -> None:
    """With one operation per group the share of images that it changes is its probability."""
    x = torch.ones(4000, 1, 4, 4)
    changed = (augment(0.3, "cutout")(x, draws(4000)) != 1).flatten(1).any(1).float().mean()
    assert 0.2 < changed < 0.31  # a hole of half the size misses no pixel, a corner one may


def test_the_middle_grey_of_colours_is_turned_into_itself() -> None:
    """Hue and saturation move colours around the grey axis: grey stays grey."""
    grey = torch.full((300, 3, 2, 2), 0.25)
    u = draws(300)
    u[:, [18, 20, 22]] = 0.999  # no brightness, contrast, inversion
    torch.testing.assert_close(recolour(grey, Draw(u, torch.tensor(0.99))), grey)
    coloured = images(300, (3, 2, 2))
    assert not torch.allclose(recolour(coloured, Draw(u, torch.tensor(0.99))), coloured)


def test_alpha_is_left_alone() -> None:
    """The last of two or four channels is transparency, and is no colour."""
    for channels in (2, 4):
        x = images(20, (channels, 4, 4))
        assert torch.equal(recolour(x, Draw(draws(20), torch.tensor(1.0)))[:, -1], x[:, -1])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_differentiable_twice(group: str, channels: int) -> None:
    """The second derivative through a function of the result is that of finite differences (in double precision)."""
    x = images(2, (channels, 4, 5)).double().requires_grad_()
    draw = Draw(draws(2, seed=3), torch.tensor(1.0))

    def changed(images: torch.Tensor) -> torch.Tensor:
        if group == "colour":
            return recolour(images, draw)
        if group == "cutout":
            return cut_out(images, draw)
        matrix = inverse_affine(draw, images.shape[2:], blit=group == "blit", geometry=group == "geometry")
        return resample(images, matrix)

    def bent(images: torch.Tensor) -> torch.Tensor:
        return changed(images).pow(3).sum((1, 2, 3))

    assert torch.autograd.gradcheck(bent, (x,))
    assert torch.autograd.gradgradcheck(bent, (x,))


def test_p_rises_above_the_target_and_falls_below() -> None:
    """A discriminator that is too sure raises p at the stated speed, up to p_max; an unsure one lowers it to 0."""
    module = Augment(AugmentConfig(target=0.6, p_max=0.5, speed_images=1000, every_images=100))
    for _ in range(10):
        module.adapt(torch.tensor(0.9), 50)
    assert float(module.p) == pytest.approx(0.5)
    module.adapt(torch.tensor(0.9), 500)
    assert float(module.p) == pytest.approx(0.5)
    for _ in range(4):
        module.adapt(torch.tensor(0.1), 50)
    assert float(module.p) == pytest.approx(0.3)
    module.adapt(torch.tensor(-1.0), 1000)
    assert float(module.p) == 0.0


def test_the_mean_over_the_interval_decides() -> None:
    """Signs are weighted by images, and a step that is not finite is left out."""
    module = Augment(AugmentConfig(target=0.5, speed_images=1000, every_images=100))
    module.adapt(torch.tensor(1.0), 60)
    module.adapt(torch.tensor(float("nan")), 60)
    assert float(module.p) == 0.0
    module.adapt(torch.tensor(-1.0), 40)  # mean 0.2, below the target
    assert float(module.p) == 0.0
    assert float(module.seen) == 0.0
    module.adapt(torch.tensor(1.0), 100)
    assert float(module.p) == pytest.approx(0.1)


def test_a_schedule_sets_p_and_is_not_adapted() -> None:
    """The strength follows the run's progress."""
    module = Augment(AugmentConfig(schedule=Cosine(start=0.0, end=0.3)))
    module.follow_schedule(0.5)
    module.adapt(torch.tensor(1.0), 10_000)
    assert float(module.p) == pytest.approx(0.15)


def test_p_is_kept_in_checkpoints() -> None:
    """The strength and what it waits for are part of the module's state."""
    module = augment(0.4)
    module.adapt(torch.tensor(0.9), 10)
    again = Augment(module.config)
    again.load_state_dict(module.state_dict())
    assert set(module.state_dict()) == {"p", "seen", "signs"}
    assert float(again.p) == pytest.approx(0.4)
    assert float(again.seen) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": 0.6, "schedule": {"start": 0, "end": 0.3}}, "target 0.6 and schedule"),
        ({"schedule": {"start": 0, "end": 1.5}}, "schedule 1.5: p is a probability"),
        ({"groups": []}, "groups \\[\\]: name at least one"),
        ({"groups": ["blur"]}, "blit"),
    ],
)
def test_senseless_settings_are_refused(values: dict[str, object], message: str) -> None:
    """Each with a sentence that says what to do."""
    with pytest.raises(UsageError, match=message):
        AugmentConfig.parse(values, origin="test")


@pytest.mark.parametrize("preset", ["fashion-tiny", "fashion-gpu", "image-64", "image-256"])
def test_a_preset_adapts_when_it_is_given_a_target(preset: str) -> None:
    """As README and the presets' comments have it; by themselves the published recipes follow a schedule, the small none."""
    by_itself, told = (
        load_spec(TrainSpec, preset, overrides, {}).family for overrides in ([], ["family.augment={target: 0.6}"])
    )
    assert isinstance(by_itself, R3GANConfig)
    assert isinstance(told, R3GANConfig)
    if preset == "fashion-tiny":
        assert by_itself.augment is None
    else:
        assert by_itself.augment is not None
        assert by_itself.augment.schedule == Cosine(start=0.0, end=0.3)
    assert told.augment == AugmentConfig(target=0.6)
