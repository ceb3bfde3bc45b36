"""Specs of VAEs: what does not fit is refused by name, and each objective's loss is what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from genworker.errors import UsageError
from genworker.families.base import Batch
from genworker.families.vae import VAE
from genworker.families.vae_config import VAEConfig
from genworker.sampling.latents import normals, uniforms
from genworker.training.loader import Loader
from genworker.training.meter import Meter
from genworker.training.spec import TrainingSpec
from genworker.training.step import Trainer
from tests.fakes import models


class Context:
    """A training step of one worker at the end of a run."""

    progress = 1.0

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def noise(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(normals(0, 16 + stream, 0, self.rows, dim))

    def uniform(self, stream: int, dim: int) -> torch.Tensor:
        return torch.from_numpy(uniforms(0, 16 + stream, 0, self.rows, dim))

    def global_mean(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach()


def batch_of(count: int) -> Batch:
    images = torch.rand(count, *models.SMALL.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, torch.arange(count) % 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"binarise": True}, "binarise true with likelihood gaussian"),
        ({"prior": "vampprior", "second_stage": False}, "second_stage false with prior vampprior"),
        ({"levels": 2, "latent_dim": 3}, "latent_dim 3: levels 2 give the top one 1"),
        ({"levels": 2, "latent_dim": 1, "prior": "standard"}, "latent_dim 1"),
        ({"prior": "standard", "latent_dim": 1, "second_stage": True}, "latent_dim 1"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    """Each wrong combination is refused when the spec is read, naming the key and the rule."""
    with pytest.raises(UsageError, match=message):
        models.family_config("vae", **values)


@pytest.mark.parametrize(("progress", "same_as"), [(0.0, "elbo"), (0.49, "elbo"), (0.5, "iwae"), (0.9, "iwae")])
def test_the_elbo_comes_before_the_iwae_bound(progress: float, same_as: str) -> None:
    """Up to iwae_start a run trains the ELBO with one latent per image, free bits included; from there on IWAE's bound."""
    values = {"network": "mlp", "mlp_width": 8, "kl_warmup": 0.0, "likelihood": "bernoulli", "iwae_samples": 4}
    configs = {
        "both": models.family_config("vae", objective="iwae", iwae_start=0.5, **values),
        "elbo": models.family_config("vae", objective="elbo", **values),
        "iwae": models.family_config("vae", objective="iwae", **values),
    }
    networks = models.networks_of(configs["elbo"], models.SMALL)
    losses = {}
    for name, config in configs.items():
        context = Context(6)
        context.progress = progress
        losses[name] = VAE(config, models.SMALL)._loss(networks, batch_of(6), context)["loss"].item()  # type: ignore[arg-type]
    assert losses["elbo"] != losses["iwae"]
    assert losses["both"] == losses[same_as]


def test_every_class_needs_a_pseudo_input() -> None:
    """Fewer pseudo-inputs than classes are refused where the classes are known; without classes they are enough."""
    with pytest.raises(UsageError, match=r"family\.num_pseudo_inputs 2: each of the 3 classes"):
        VAE(VAEConfig(prior="vampprior", num_pseudo_inputs=2), models.SMALL)
    VAE(VAEConfig(prior="vampprior", num_pseudo_inputs=2, conditional=False), models.SMALL)


def test_one_importance_weight_is_the_elbo() -> None:
    """With one sample the IWAE bound is a one-sample ELBO: equal in expectation, here to the part that noise explains."""
    values = {"network": "mlp", "mlp_width": 8, "kl_warmup": 0.0, "free_bits": 0.0, "likelihood": "bernoulli"}
    elbo = models.family_config("vae", **values)
    iwae = models.family_config("vae", objective="iwae", iwae_samples=1, **values)
    networks = models.networks_of(elbo, models.SMALL)
    losses = [VAE(config, models.SMALL)._loss(networks, batch_of(6), Context(6)) for config in (elbo, iwae)]  # type: ignore[arg-type]
    # The flow's KL is estimated by the same sample in both, so that here they are equal.
    torch.testing.assert_close(losses[0]["loss"], losses[1]["loss"])


def test_the_iwae_bound_is_the_estimate_of_the_likelihood() -> None:
    """The loss of K samples is minus the mean log of the mean weight, as computed from each sample's own loss."""
    values = {"network": "mlp", "mlp_width": 8, "kl_warmup": 0.0, "likelihood": "bernoulli", "objective": "iwae"}
    many = models.family_config("vae", iwae_samples=4, **values)
    networks = models.networks_of(many, models.SMALL)
    batch, family = batch_of(1), VAE(many, models.SMALL)  # type: ignore[arg-type]
    whole = family._loss(networks, batch, Context(1))["loss"]
    one = VAE(models.family_config("vae", iwae_samples=1, **values), models.SMALL)  # type: ignore[arg-type]

    class Part(Context):
        def __init__(self, index: int) -> None:
            super().__init__(1)
            self.index = index

        def noise(self, stream: int, dim: int) -> torch.Tensor:
            return Context(1).noise(stream, 4 * dim).view(4, dim)[self.index : self.index + 1]

    parts = torch.stack([one._loss(networks, batch, Part(index))["loss"] for index in range(4)])
    torch.testing.assert_close(whole, math.log(4) - torch.logsumexp(-parts, 0))
    assert whole < parts.mean()


def test_the_second_stage_moves_nothing_but_itself() -> None:
    """Its gradients reach the flow alone, and training the flow raises the density of encoded images."""
    spec = models.train_spec(
        "vae",
        family={"prior": "standard", "network": "mlp", "mlp_width": 16, "conditional": True, "lr": 5e-3},
        images=9_600,
        batch_size=16,
    )
    trainer, meter = Trainer(spec, models.shipped_source(), 0, 1, torch.device("cpu")), Meter()
    with Loader(models.shipped_source(), batch_size=16, seed=0) as loader:
        for _ in range(100):
            trainer.step([next(loader)], Meter())
        others = {
            name: value.clone()
            for name, value in trainer.networks.state_dict().items()
            if not name.startswith("second_stage")
        }
        phase = trainer.phases[1]
        assert phase.networks == ("second_stage",)
        before = float(_second_stage_loss(trainer, next(loader)))
        for _ in range(100):
            trainer.compute_gradients(phase, [next(loader)], meter)
            trainer.optimizers["second_stage"].step()
        assert float(_second_stage_loss(trainer, next(loader))) < before
    for name, value in others.items():
        assert torch.equal(trainer.networks.state_dict()[name], value), name
    sampler = trainer.family.generator(trainer.networks)
    assert sampler.top is trainer.networks["second_stage"]  # type: ignore[attr-defined]


@torch.no_grad()
def _second_stage_loss(trainer: Trainer, batch: Any) -> torch.Tensor:
    moved = trainer.on_device(batch)
    return trainer.phases[1].loss(trainer.networks, moved, Context(len(moved.images)))["loss"]  # type: ignore[arg-type]


def test_a_step_beyond_the_bound_is_skipped_and_counted() -> None:
    """With skip_norm below every gradient no weight moves, and each step is counted."""
    spec = models.train_spec("vae", family={"skip_norm": 1e-6, "lr": 1e-3})
    trainer = Trainer(spec, models.shipped_source(), 0, 1, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.networks.state_dict().items()}
    with Loader(models.shipped_source(), batch_size=8, seed=0) as loader:
        for _ in range(3):
            trainer.step([next(loader)], Meter())
    assert trainer.state.counters.skipped_steps == 3
    assert all(torch.equal(value, trainer.networks.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("prior", ["flow", "standard", "vampprior"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "logistic_mixture"])
@pytest.mark.parametrize("levels", [1, 2])
def test_bfloat16_keeps_the_terms_exact(levels: int, likelihood: str, prior: str) -> None:
    """Under autocast every term of the loss is float32 and close to the loss without it."""
    config = models.family_config(
        "vae",
        levels=levels,
        likelihood=likelihood,
        prior=prior,
        num_pseudo_inputs=6,
        network="mlp",
        mlp_width=16,
        kl_warmup=0.0,
        mixture_components=2,
    )
    networks, family = models.networks_of(config, models.SMALL), VAE(config, models.SMALL)  # type: ignore[arg-type]
    exact = family._loss(networks, batch_of(4), Context(4))
    with torch.autocast("cpu", torch.bfloat16):
        low = family._loss(networks, batch_of(4), Context(4))
    for name, value in exact.items():
        assert low[name].dtype == torch.float32, name
        torch.testing.assert_close(low[name], value, rtol=0.02, atol=0.3)


class At(Context):
    """The same step at another share of the run."""

    def __init__(self, rows: int, progress: float) -> None:
        super().__init__(rows)
        self.progress = progress


@pytest.mark.parametrize(
    ("kl_warmup", "progress", "weight"),
    [(0.1, 0.0, 0.0), (0.1, 0.025, 0.5), (0.1, 0.1, 2.0), (0.1, 0.9, 2.0), (1.0, 0.75, 1.5), (0.0, 0.0, 2.0)],
)
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_the_weight_of_the_kl_term_grows_over_the_warm_up(
    objective: str, kl_warmup: float, progress: float, weight: float
) -> None:
    """It is beta, here 2, times the share of the warm-up that is done; what is reported is the ELBO, without any weight."""
    own = {"objective": objective, "iwae_samples": 1, "free_bits": 0.0, "likelihood": "bernoulli"}
    config = models.family_config("vae", network="mlp", mlp_width=8, beta=2.0, kl_warmup=kl_warmup, **own)
    networks = models.networks_of(config, models.SMALL)
    losses = VAE(config, models.SMALL)._loss(networks, batch_of(1), At(1, progress))  # type: ignore[arg-type]
    assert losses["kl"] > 0.1  # so that a wrong weight shows
    torch.testing.assert_close(losses["loss"].detach(), losses["nll"] + weight * losses["kl"])
    torch.testing.assert_close(losses["negative_elbo"], losses["nll"] + losses["kl"])


@pytest.mark.parametrize(("free_bits", "penalised"), [(0.0, 3.306853), (0.4, 3.306853), (0.6, 2.806853), (0.9, 2.0)])
def test_free_bits_are_nats_of_each_latent(free_bits: float, penalised: float) -> None:
    """Posteriors N(0, 1), N(1, 1), N(2, 1) and N(0, 4) have KL 0, 1/2, 2 and (3 - ln 4) / 2 = 0.806853 from N(0, 1).

    Only what lies above the free bits enters the loss, whole, and has a gradient; the KL that is reported is all of it.
    """
    own = {"prior": "standard", "second_stage": False, "free_bits": free_bits, "kl_warmup": 0.0, "beta": 0.5}
    config = models.family_config("vae", network="mlp", mlp_width=8, likelihood="bernoulli", **own | {"latent_dim": 4})
    networks = models.networks_of(config, models.SMALL)
    head = networks["encoder"].end.linear  # type: ignore[union-attr]
    with torch.no_grad():
        head.weight.zero_()  # type: ignore[operator]
        head.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, math.log(4.0)]))  # type: ignore[operator]
    losses = VAE(config, models.SMALL)._loss(networks, batch_of(3), Context(3))  # type: ignore[arg-type]
    assert float(losses["kl"]) == pytest.approx(3.306853, rel=1e-5)
    assert float((losses["loss"] - losses["nll"]).detach()) == pytest.approx(0.5 * penalised, rel=1e-4)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_free_bits_of_a_learned_prior_are_those_of_all_its_latents(share: float) -> None:
    """A flow prior gives one number for six latents, which is penalised above six times the free bits."""
    own = {"prior": "flow", "kl_warmup": 0.0, "likelihood": "bernoulli", "network": "mlp", "mlp_width": 8}
    networks = models.networks_of(models.family_config("vae", **own), models.SMALL)

    def loss(free_bits: float) -> dict[str, torch.Tensor]:
        config = models.family_config("vae", free_bits=free_bits, **own)
        return VAE(config, models.SMALL)._loss(networks, batch_of(3), Context(3))  # type: ignore[arg-type]

    kl = loss(0.0)["kl"]
    assert kl > 0.1
    found = loss(share * float(kl) / 6)
    torch.testing.assert_close(found["loss"].detach(), found["nll"] + (kl if share < 1 else 0.0))


def gradient(micro_batch_size: int, **family: Any) -> torch.Tensor:
    """The gradient of eight images' bound, accumulated over micro-batches, as one vector."""
    values = {"network": "mlp", "mlp_width": 8, "kl_warmup": 0.0} | family
    spec = models.train_spec("vae", family=values, batch_size=8, micro_batch_size=micro_batch_size, images=8)
    trainer = Trainer(spec, models.shipped_source(), 0, 1, torch.device("cpu"))
    models.shake(trainer.networks, scale=0.05)
    with Loader(models.shipped_source(), batch_size=micro_batch_size, seed=0, prefetch=0) as loader:
        batches = [next(loader) for _ in range(8 // micro_batch_size)]
    trainer.compute_gradients(trainer.phases[0], batches, Meter())
    moved = (p.grad for name in trainer.phases[0].networks for p in trainer.networks[name].parameters())
    return torch.cat([grad.flatten() for grad in moved if grad is not None])


def difference(**family: Any) -> float:
    """Between accumulated gradients and those of the whole batch, relative to their size."""
    whole = gradient(8, **family)
    return float((gradient(2, **family) - whole).norm() / whole.norm())


@pytest.mark.parametrize(
    "family",
    [
        {"likelihood": "bernoulli", "binarise": True},
        {"likelihood": "logistic_mixture", "mixture_components": 2, "prior": "standard"},
        {"likelihood": "bernoulli", "prior": "vampprior", "num_pseudo_inputs": 12},
        {"likelihood": "bernoulli", "levels": 2},
        {"likelihood": "bernoulli", "objective": "iwae", "iwae_samples": 3},
        {"min_sigma": 10.0},  # at its floor, sigma is the same for every part
    ],
    ids=["binarised", "logistics", "vampprior", "two levels", "iwae", "fixed sigma"],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(family: dict[str, Any]) -> None:
    """Where the bound is a mean over images, four micro-batches give the gradient of the batch that they make up."""
    assert difference(free_bits=0.0, **family) < 1e-5


def test_sigma_and_free_bits_are_those_of_a_micro_batch() -> None:
    """They look at all images that are put through the networks at once, as the help of micro_batch_size says."""
    assert difference(free_bits=0.0, likelihood="gaussian") > 1e-3
    assert difference(free_bits=0.35, likelihood="bernoulli", prior="standard") > 1e-3
    described = str(TrainingSpec.model_fields["micro_batch_size"].description)
    assert "sigma" in described
    assert "free bits" in described
