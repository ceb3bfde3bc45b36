"""What a VAE measures while it trains: collapse raises an alarm when there is one, and none when there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from genworker.families.base import Batch
from genworker.families.vae import VAE
from genworker.families.vae_config import VAEConfig
from genworker.families.vae_health import information_share
from genworker.sampling.latents import normals, uniforms
from genworker.training.examine import Examiner
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.step import Trainer
from genworker.training.watchdog import Watchdog
from tests.fakes import models

if TYPE_CHECKING:
    from genworker.training.watchdog import Alarm

SHORT = {
    "images": 6_400,
    "batch_size": 32,
    "holdout_share": 0.1,
}


class Context:
    """Noise for a few hundred rows; any call of a collective fails."""

    progress = 1.0

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def noise(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(normals(0, 900 + stream, 0, self.rows, dim))

    def uniform(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(uniforms(0, 900 + stream, 0, self.rows, dim))

    def global_mean(self, value: torch.Tensor) -> torch.Tensor:
        raise AssertionError("examine runs on one rank alone")


def trained(**family: Any) -> tuple[dict[str, Any], list[Alarm]]:
    """A short real run with five reports: the last one's measures, and the alarms of all."""
    values = {"network": "mlp", "mlp_width": 48, "latent_dim": 12, "embedding_dim": 8} | family
    spec = models.train_spec("vae", family=values, limit=1_000, **SHORT)
    source = models.shipped_source(1_000)
    trainer = Trainer(spec, source, 0, 1, torch.device("cpu"))
    examiner, watchdog, meter = Examiner(trainer, source), Watchdog(spec.watchdog, trainer.family.bands()), Meter()
    metrics: dict[str, Any] = {}
    with Loader(source, batch_size=spec.training.batch_size, seed=0) as loader:
        for report in range(1, 6):
            while trainer.state.counters.images_seen < spec.training.images * report // 5:
                trainer.step([next(loader)], meter)
            counters = trainer.state.counters
            metrics = {
                "images_seen": counters.images_seen,
                "images_per_second": 1.0,
                "nonfinite_steps": counters.nonfinite_steps,
                "skipped_steps": counters.skipped_steps,
                **meter.averages(),
                **examiner.measure(),
            }
            watchdog.judge(metrics, report / 5, [1.0], 40)
            meter = Meter()
    return metrics, watchdog.alarms


@pytest.mark.slow
def test_a_collapse_raises_the_alarm_and_health_does_not() -> None:
    """The default family trains without an alarm; beta = 20, the known way into collapse, raises one that says what to do."""
    healthy, none = trained()
    assert none == []
    assert healthy["information_share"] > 0.97
    assert healthy["active_units"] == 12
    assert min(healthy["kl_per_latent"]) > 0.2
    collapsed, alarms = trained(beta=20.0)
    assert [alarm.kind for alarm in alarms] == ["information_share"]
    assert "the posterior has collapsed" in alarms[0].text
    assert "lower family.beta to 1" in alarms[0].text
    assert collapsed["elbo.kl"] < 0.5 * healthy["elbo.kl"]
    assert collapsed["elbo_train"] < healthy["elbo_train"]
    assert healthy["elbo_gap"] == pytest.approx(healthy["elbo_train"] - healthy["elbo_held_out"])


@pytest.mark.parametrize(("beta", "active"), [(1.0, 10), (1000.0, 0)])
def test_latents_that_training_has_killed_raise_the_alarm(beta: float, active: int) -> None:
    """Without free bits, and with a KL term that drowns the pixels, no latent stays active, and the watchdog says so."""
    values = {"network": "mlp", "mlp_width": 16, "latent_dim": 10, "prior": "standard", "second_stage": False}
    rest = {"free_bits": 0.0, "kl_warmup": 0.0, "lr": 1e-2, "beta": beta}
    spec = models.train_spec("vae", family=values | rest, limit=256, images=40 * 32, batch_size=32)
    source = models.shipped_source(256)
    trainer = Trainer(spec, source, 0, 1, torch.device("cpu"))
    with Loader(source, batch_size=32, seed=0, prefetch=0) as loader:
        for _ in range(40):
            trainer.step([next(loader)], Meter())
    measures = Examiner(trainer, source).measure()
    assert measures["active_units"] == active
    report = {"images_seen": 1280, "images_per_second": 1.0, "nonfinite_steps": 0, "skipped_steps": 0, **measures}
    watchdog = Watchdog(spec.watchdog, trainer.family.bands())
    for _ in range(spec.watchdog.patience):
        watchdog.judge(report, 1.0, [1.0], 40)
    texts = [alarm.text for alarm in watchdog.alarms if alarm.kind == "active_units"]
    assert len(texts) == (active == 0)
    assert all("active_units is 0, its band is [2, inf]: the posterior has collapsed" in text for text in texts)


@pytest.mark.parametrize("prior", ["standard", "flow", "vampprior"])
def test_dead_latents_are_not_counted_as_active(prior: str) -> None:
    """A latent whose posterior is the same for every image is not active, whatever the prior; the others are."""
    chosen = VAEConfig.parse(
        {"network": "mlp", "mlp_width": 8, "latent_dim": 6, "prior": prior, "num_pseudo_inputs": 9}, origin="test"
    )
    networks, family = models.networks_of(chosen, models.SMALL), VAE(chosen, models.SMALL)
    head = networks["encoder"].end.linear  # type: ignore[union-attr]
    with torch.no_grad():
        head.weight.mul_(3.0)  # type: ignore[operator]
        head.weight[[1, 4]] = 0.0  # type: ignore[index]
        head.weight[[7, 10]] = 0.0  # type: ignore[index]
        head.bias.zero_()  # type: ignore[operator]
    images = torch.rand(64, *models.SMALL.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(images, torch.arange(64) % 3)
    measures = family.examine(networks, batch, Batch(images[:20], batch.labels[:20]), Context(64))  # type: ignore[index]
    assert measures["active_units"] == 4
    assert isinstance(measures["kl_per_latent"], list)
    assert measures["kl_per_latent"][1] == pytest.approx(0.0, abs=1e-5)
    assert min(measures["kl_per_latent"][i] for i in (0, 2, 3, 5)) > 0.01


@pytest.mark.parametrize("binarise", [True, False])
@pytest.mark.parametrize("levels", [1, 2])
def test_measures_need_no_held_out_images(levels: int, binarise: bool) -> None:
    """Without held-out images there is no gap; with more levels every latent of both has its KL."""
    chosen = models.family_config("vae", latent_dim=6, levels=levels, likelihood="bernoulli", binarise=binarise)
    networks, family = models.networks_of(chosen, models.SMALL), VAE(chosen, models.SMALL)  # type: ignore[arg-type]
    images = torch.rand(8, *models.SMALL.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measures = family.examine(networks, Batch(images, torch.arange(8) % 3), None, Context(8))
    assert "elbo_gap" not in measures
    assert len(measures["kl_per_latent"]) == 6  # type: ignore[arg-type]
    assert ("active_units_top" in measures) == (levels == 2)


def test_information_goes_from_none_to_all() -> None:
    """Latents that are alike for all images single out none, those far apart each, and noise in between some."""
    noise = torch.from_numpy(normals(0, 0, 0, 100, 4))
    apart = torch.from_numpy(normals(0, 1, 0, 100, 4))
    shares = [information_share(scale * apart, torch.zeros(100, 4), noise) for scale in (0.0, 1.0, 50.0)]
    assert shares[0] == pytest.approx(0.0, abs=1e-6)
    assert 0.1 < shares[1] < 0.7
    assert shares[2] == pytest.approx(1.0, abs=1e-6)


def test_collapse_bands_wait_for_training_to_begin() -> None:
    """Nothing is asked of the latents at the very start; a bound that is no number is noticed at once and rolled back."""
    bands = {band.metric: band for band in VAE(VAEConfig(latent_dim=40), models.GREY).bands()}
    assert bands["active_units"].low == 8
    assert bands["active_units"].from_progress > 0.1
    assert bands["information_share"].action == "warn"
    assert bands["elbo.negative_elbo"].action == "rollback"
    assert bands["elbo.negative_elbo"].from_progress == 0.0
