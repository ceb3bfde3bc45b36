"""The GAN recipe: losses and penalties against closed forms, packs, what is refused, and what the watchdog is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from genworker import families
from genworker.errors import UsageError
from genworker.families import gan_health, gan_losses
from genworker.families.augment import Augment
from genworker.families.base import Batch
from genworker.families.blocks import DownStack, StackConfig, UpStack
from genworker.families.layers import FilteredResample
from genworker.families.r3gan_config import R3GANConfig
from genworker.schema import ImageSchema
from genworker.training.examine import Examiner
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.order import held_out_indices
from genworker.training.step import Trainer
from genworker.training.watchdog import Watchdog
from tests.fakes import models
from tests.fakes.steps import Context


def config_of(**changes: object) -> R3GANConfig:
    config = models.family_config("r3gan", **changes)
    assert isinstance(config, R3GANConfig)
    return config


def batch_of(count: int, schema: ImageSchema = models.SMALL) -> Batch:
    images = torch.rand(count, *schema.image_shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Batch(images, torch.arange(count) % schema.num_classes)


def discriminator_losses(config: R3GANConfig, count: int = 6) -> dict[str, torch.Tensor]:
    family = families.make(config, models.SMALL)
    return family.phases()[0].loss(models.networks_of(config, models.SMALL), batch_of(count), Context(count))


@pytest.mark.parametrize("name", sorted(gan_losses.LOSSES))
def test_the_losses_are_what_their_papers_say(name: str) -> None:
    """Against the formulas, with numbers of plain Python."""
    real, fake = [0.3, -1.2, 2.0], [-0.5, 0.4, 1.5]
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    pairs = list(zip(real, fake, strict=True))
    expected = {
        "relativistic": (sum(softplus(f - r) for r, f in pairs), sum(softplus(r - f) for r, f in pairs)),
        "non_saturating": (sum(softplus(-r) + softplus(f) for r, f in pairs), sum(softplus(-f) for f in fake)),
        "hinge": (sum(max(0, 1 - r) + max(0, 1 + f) for r, f in pairs), -sum(fake)),
        "wasserstein": (sum(f - r for r, f in pairs), -sum(fake)),
    }[name]
    loss = gan_losses.LOSSES[name]
    scores = torch.tensor(real), torch.tensor(fake)
    assert float(loss.discriminator(*scores)) == pytest.approx(expected[0] / 3, rel=1e-5)
    assert float(loss.generator(*scores)) == pytest.approx(expected[1] / 3, rel=1e-5)


@pytest.mark.parametrize(("name", "shift"), [("relativistic", 7.0), ("wasserstein", 7.0), ("hinge", 0.6)])
def test_unanchored_losses_of_the_discriminator_see_differences_only(name: str, shift: float) -> None:
    """Adding a constant to all scores (of hinge, between its margins) changes nothing: r_t is measured from the middle."""
    loss = gan_losses.LOSSES[name]
    real, fake = torch.tensor([0.3, -0.7]), torch.tensor([-0.5, 0.4])
    torch.testing.assert_close(loss.discriminator(real + shift, fake + shift), loss.discriminator(real, fake))
    assert not loss.anchored
    here, there = (gan_health.signs(real + shift, fake + shift, Context(2), anchored=False) for shift in (0.0, shift))
    assert torch.equal(here["real_sign"], there["real_sign"])


def test_penalties_of_a_linear_score_are_known() -> None:
    """The score w.x has gradient w at every image: R1 is |w|^2, and the one-centred penalty (|w| - 1)^2."""
    weight = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    images = torch.randn(5, 2, 1, 1, requires_grad=True)
    squared = gan_losses.squared_norms(gan_losses.pixel_gradient((images * weight).sum((1, 2, 3)), images), 5)
    torch.testing.assert_close(squared, torch.full((5,), 25.0))
    assert float(gan_losses.one_centred(squared)) == pytest.approx(16.0)


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_penalties_look_through_the_augmentation(penalty: str) -> None:
    """They are derivatives by the pixels before augmentation: contrast doubled doubles the gradient."""
    config = config_of(augment={"groups": ["colour"], "schedule": 1.0})
    family, networks = families.make(config, models.SMALL), models.networks_of(config, models.SMALL)
    augment, batch, ctx = networks["augment"], batch_of(6), Context(6)
    assert isinstance(augment, Augment)
    losses = family.phases()[0].loss(networks, batch, ctx)
    images, stream = batch.images, 1
    if penalty == "r2":
        images, stream = networks["generator"](ctx.noise(0, config.latent_dim), batch.labels).detach(), 2
    images.requires_grad_()
    shown = augment(images, ctx.uniform(stream, 32))
    scores = networks["discriminator"](shown, batch.labels)
    by_original, by_shown = torch.autograd.grad(scores.sum(), [images, shown])
    by_hand = by_original.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(losses[penalty].detach(), by_hand, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(by_hand, by_shown.square().sum((1, 2, 3)).mean(), rtol=0.05)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("block", ["plain", "bottleneck"])
def test_bfloat16_costs_losses_and_penalties_less_than_two_per_cent(
    block: str, augmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions alone are rounded: augmentation, derivatives by pixels, penalties and losses stay in float32."""
    config = config_of(block=block, augment={"schedule": 0.6} if augmented else None)
    family, networks = families.make(config, models.SMALL), models.networks_of(config, models.SMALL)
    derivatives: list[torch.Tensor] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: derivatives.extend(found := grad(*a, **k)) or found)
    for phase in family.phases():
        exact = phase.loss(networks, batch_of(16), Context(16))
        derivatives.clear()
        with torch.autocast("cpu", torch.bfloat16):
            low = phase.loss(networks, batch_of(16), Context(16))
        assert [value.dtype for value in derivatives] == [torch.float32] * (2 if "r1" in exact else 0)
        assert {value.dtype for value in low.values()} == {torch.float32}
        for name in sorted({"loss", "adversarial", "r1", "r2"} & exact.keys()):
            assert not torch.equal(low[name], exact[name]), f"{name} was not computed in bfloat16 at all"
            torch.testing.assert_close(low[name], exact[name], rtol=0.02, atol=0.0)
    if augmented:
        images, uniform = batch_of(16).images, Context(16).uniform(1, 32)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = networks["augment"](images, uniform)
        assert torch.equal(rounded, networks["augment"](images, uniform))


def test_packs_are_judged_together() -> None:
    """With pac 3 there is one score for three neighbours; it depends on each of them, and on each one's label."""
    config = config_of(pac=3)
    assert config.unit == 3
    discriminator = models.networks_of(config, models.SMALL)["discriminator"]
    batch = batch_of(6)
    assert batch.labels is not None
    with torch.no_grad():
        scores = discriminator(batch.images, batch.labels)
        assert scores.shape == (2,)
        for member in range(3):
            images, labels = batch.images.clone(), batch.labels.clone()
            images[member] += 0.5
            labels[member] = (labels[member] + 1) % 3
            for other in (discriminator(images, batch.labels), discriminator(batch.images, labels)):
                assert other[0] != scores[0]
                torch.testing.assert_close(other[1], scores[1])
    assert discriminator_losses(config)["loss"].isfinite()


def test_wgan_gp_moves_the_generator_in_every_fifth_step() -> None:
    """The usual settings of WGAN-GP are understood, and its penalty is the one at interpolates."""
    config = config_of(loss="wasserstein", r1=False, r2=False, gp=10.0, discriminator_steps=5)
    phases = families.make(config, models.SMALL).phases()
    assert [phase.every for phase in phases] == [1, 5]
    losses = discriminator_losses(config)
    assert "r1" not in losses
    torch.testing.assert_close(losses["loss"], losses["adversarial"] + 10.0 * losses["gp"])


def test_two_time_scales_are_the_phases() -> None:
    """discriminator_lr_scale reaches the discriminator's phase and no other."""
    phases = families.make(config_of(discriminator_lr_scale=4.0), models.SMALL).phases()
    assert [phase.lr_scale for phase in phases] == [4.0, 1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gp": 10.0}, "gp 10 with r1 and r2: gp pulls gradients to norm 1"),
        ({"gp": 10.0, "r1": False, "r2": False}, "gp 10 with loss relativistic"),
        ({"loss": "wasserstein", "r1": False, "r2": False}, "loss wasserstein without a penalty"),
        ({"loss": "wasserstein", "gamma": 0}, "loss wasserstein without a penalty.*r1 and r2 with gamma above 0"),
        ({"gamma": {"start": -1, "end": 1}}, "gamma -1: must lie in"),
        ({"beta2": {"start": 0.9, "end": 1.0}}, "beta2 1: must lie in"),
        ({"pac": 0}, "pac"),
        ({"generator": {"widths": [100_000]}}, "widths"),
    ],
)
def test_senseless_combinations_are_refused(values: dict[str, object], message: str) -> None:
    """When the spec is read, with the reason and a way out."""
    with pytest.raises(UsageError, match=message):
        config_of(**values)


@pytest.mark.parametrize("network", [UpStack, DownStack])
def test_stages_that_no_image_fills_are_refused(network: type) -> None:
    """Nine stages for an image of 28 pixels would make one cell of 256 pixels."""
    config = StackConfig(widths=(8,) * 9, blocks=0)
    with pytest.raises(UsageError, match="8 doublings make 256 pixels of one cell, more than twice the image of 28x28"):
        network(4, 1, 28, 28, config) if network is UpStack else network(1, 28, 28, 4, config)


def test_resampling_keeps_flat_images_flat() -> None:
    """[1, 2, 1] sums to one: away from the edges a constant stays what it is, up and down."""
    up, down = FilteredResample(3, 3, up=True), FilteredResample(3, 3, up=False)
    x = torch.ones(1, 3, 6, 6)
    torch.testing.assert_close(up(x)[:, :, :-1, :-1], torch.ones(1, 3, 11, 11))
    torch.testing.assert_close(down(x)[:, :, 1:, 1:], torch.ones(1, 3, 2, 2))
    assert up(x).shape == (1, 3, 12, 12)


@pytest.mark.parametrize("block", ["plain", "bottleneck"])
def test_coarse_stages_stay_in_float32(block: str) -> None:
    """Under bfloat16 autocast the stages named by float32_stages compute in float32, and scores always are float32."""
    config = StackConfig(block=block, widths=(8, 8), blocks=1, group_width=4, float32_stages=1)
    stack = DownStack(1, 8, 8, 3, config)
    seen: list[torch.dtype] = []
    for stage in stack.stages:
        stage.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        scores = stack(torch.randn(2, 1, 8, 8))
    assert scores.dtype == torch.float32
    assert seen[-1] == torch.float32
    assert F.mse_loss(scores, stack(torch.zeros(2, 1, 8, 8))).isfinite()


def test_the_held_out_gap_is_in_standard_deviations() -> None:
    """It is Cohen's d: no difference gives 0, one deviation gives 1, whatever the scale of scores."""
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 40
    assert gan_health.held_out_gap(scores, scores) == 0.0
    shifted = scores + scores.std(unbiased=False)
    assert gan_health.held_out_gap(shifted, scores) == pytest.approx(1.0, rel=1e-5)


def test_the_balance_of_penalties_is_the_log_ratio_of_gradient_norms() -> None:
    """Gradients four times as large at generated images are two doublings."""
    assert float(gan_health.balance(torch.tensor(1.0), torch.tensor(16.0), Context(1))) == pytest.approx(2.0)


def test_a_discriminator_that_knows_its_images_by_heart_raises_the_alarm() -> None:
    """Trained on 34 images only, it soon scores them above 32 that it never saw, and the alarm says what to do."""
    stack = {"widths": [32, 16], "blocks": 0, "patch": 4}
    game = {"loss": "non_saturating", "r1": False, "r2": False, "lr": 5e-3, "conditional": False}
    spec = models.train_spec(
        "r3gan",
        family={"generator": stack, "discriminator": stack} | game,
        images=120 * 33,
        batch_size=33,
        limit=66,
        holdout_share=0.49,
    )
    source = models.shipped_source(66)
    trainer = Trainer(spec, source, 0, 1, torch.device("cpu"))
    examiner, watchdog = Examiner(trainer, source), Watchdog(spec.watchdog, trainer.family.bands())
    report = {"images_per_second": 1.0, "nonfinite_steps": 0, "skipped_steps": 0}
    alarms: list[str] = []
    with Loader(source, batch_size=33, seed=0, held_out=held_out_indices(66, 0.49), prefetch=0) as loader:
        while not alarms and loader.images_seen < spec.training.images:
            report["images_seen"] = loader.images_seen
            progress = loader.images_seen / spec.training.images
            _, found = watchdog.judge(report | examiner.measure(), progress, [1.0], 10)
            alarms += [str(alarm) for alarm in found]
            for _ in range(10):
                trainer.step([next(loader)], Meter())
    assert loader.images_seen > 40 * 33  # untrained, it knows none
    assert len(alarms) == 1
    assert "held_out_gap is" in alarms[0]
    assert "learns them by heart; bring more data, or switch family.augment on" in alarms[0]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loss": "hinge", "r2": False},
        {"loss": "wasserstein", "r2": False},
        {"loss": "wasserstein", "r1": False, "r2": False, "gp": 10.0},
        {"augment": {"target": 0.6}},
        {"augment": {"schedule": 0.3}},
    ],
)
def test_bands_are_about_metrics_that_are_reported(values: dict[str, object]) -> None:
    """Every band names a loss, a measure or a gradient norm that a run of that config reports, and tells what to do."""
    config = config_of(**values)
    family = families.make(config, models.SMALL)
    networks = models.networks_of(config, models.SMALL)
    reported = {"generator.grad_norm", "discriminator.grad_norm"}
    for phase in family.phases():
        reported |= {f"{phase.name}.{name}" for name in phase.loss(networks, batch_of(6), Context(6))}
    with torch.no_grad():
        reported |= set(family.examine(networks, batch_of(6), batch_of(6), Context(6)))
    for band in family.bands():
        assert band.metric in reported
        assert len(band.meaning) > 40
