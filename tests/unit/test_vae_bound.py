"""Estimates of log p(x) against models whose log p(x) has a closed form, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genworker.families.base import Likelihood, Networks
from genworker.families.likelihoods import PixelLikelihood
from genworker.families.vae import VAE
from genworker.families.vae_bound import binarised, decoder_of, encoder_of
from genworker.families.vae_config import VAEConfig
from genworker.families.vae_networks import GaussianHead
from genworker.schema import ImageSchema
from tests.fakes import models

SCHEMA = ImageSchema(channels=1, height=3, width=4)
PIXELS = 12
SIGMA = 0.3


class LinearGaussian(PixelLikelihood):
    """x = decoder's output + SIGMA * noise."""

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        normal = torch.distributions.Normal(parameters, SIGMA)
        return normal.log_prob(images).sum((1, 2, 3))


def config(**values: object) -> VAEConfig:
    return VAEConfig.parse(
        {"network": "mlp", "mlp_width": 8, "prior": "standard", "conditional": False} | values, origin="test"
    )


def set_linear(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def linear_head(mean_weight: Tensor, mean_bias: Tensor, variance: Tensor) -> GaussianHead:
    """A posterior or prior with a linear mean and a constant variance."""
    dim, features = mean_weight.shape
    head = GaussianHead(features, dim)
    set_linear(
        head.linear,
        torch.cat([mean_weight, torch.zeros(dim, features)]),
        torch.cat([mean_bias, variance.log()]),
    )
    return head


def one_level(inflation: float) -> tuple[VAE, Networks, Tensor, Tensor]:
    """A linear-Gaussian VAE whose posterior is exact for inflation 1; with the mean and covariance of p(x)."""
    generator = torch.Generator().manual_seed(1)
    weight, _ = torch.linalg.qr(torch.randn(PIXELS, 3, generator=generator))
    weight = weight * torch.tensor([1.0, 0.6, 0.2])  # orthogonal columns, so that the posterior is diagonal
    bias = torch.randn(PIXELS, generator=generator) * 0.1
    family = VAE(config(latent_dim=3, second_stage=False), SCHEMA)
    networks = family.build()
    decoder, encoder = decoder_of(networks), encoder_of(networks)
    linear = nn.Linear(3, PIXELS)
    set_linear(linear, weight, bias)
    decoder.stack, decoder.likelihood = nn.Sequential(linear, nn.Unflatten(1, (1, 3, 4))), LinearGaussian(1)
    variance = 1.0 / (1.0 + weight.square().sum(0) / SIGMA**2)
    to_mean = variance[:, None] * weight.T / SIGMA**2
    encoder.trunk = nn.Flatten()
    encoder.end = linear_head(to_mean, -to_mean @ bias, variance * inflation)
    return family, networks, bias, weight @ weight.T + SIGMA**2 * torch.eye(PIXELS)


def two_levels() -> tuple[VAE, Networks, Tensor, Tensor]:
    """The same with z1 = A z2 + noise, and a posterior that is only roughly right."""
    family, networks, bias, _ = one_level(1.0)
    weight = decoder_of(networks).stack[0].weight.detach()
    family = VAE(config(latent_dim=5, levels=2, second_stage=False), SCHEMA)
    networks = family.build()
    decoder, encoder = decoder_of(networks), encoder_of(networks)
    generator = torch.Generator().manual_seed(2)
    across = torch.randn(3, 2, generator=generator) * 0.5
    lower_variance = torch.tensor([0.5, 0.8, 1.2])
    decoder.lower_prior_trunk = nn.Identity()
    decoder.lower_prior_end = linear_head(across, torch.zeros(3), lower_variance)
    linear = nn.Linear(5, PIXELS)
    set_linear(linear, torch.cat([torch.zeros(PIXELS, 2), weight], 1), bias)
    decoder.stack, decoder.likelihood = nn.Sequential(linear, nn.Unflatten(1, (1, 3, 4))), LinearGaussian(1)
    encoder.trunk, encoder.joint = nn.Flatten(), nn.Identity()
    encoder.end = linear_head(torch.zeros(2, PIXELS), torch.zeros(2), torch.ones(2))
    variance = 1.0 / (1.0 / lower_variance + weight.square().sum(0) / SIGMA**2)
    to_mean = variance[:, None] * weight.T / SIGMA**2
    features_and_top = torch.cat([to_mean, variance[:, None] / lower_variance[:, None] * across], 1)
    encoder.lower_end = linear_head(features_and_top, -to_mean @ bias, variance * 1.3)
    covariance = weight @ (across @ across.T + torch.diag(lower_variance)) @ weight.T
    return family, networks, bias, covariance + SIGMA**2 * torch.eye(PIXELS)


def exact(images: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The closed form of log p(x)."""
    normal = torch.distributions.MultivariateNormal(mean.double(), covariance.double())
    return normal.log_prob(images.flatten(1).double())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 1, 3, 4, generator=torch.Generator().manual_seed(3)) * 0.5


def test_the_family_has_the_capability() -> None:
    """A VAE estimates likelihoods."""
    assert isinstance(VAE(config(), SCHEMA), Likelihood)


def test_one_sample_of_the_exact_posterior_is_exact(images: Tensor) -> None:
    """Where q(z | x) is p(z | x), each importance weight is p(x) itself, whatever the sample."""
    family, networks, mean, covariance = one_level(1.0)
    ours = family.log_likelihood(networks, images, None, num_samples=1, chunk=10, seed=0)
    torch.testing.assert_close(ours, exact(images, mean, covariance), rtol=0, atol=1e-4)


@pytest.mark.parametrize("build", [lambda: one_level(1.5), two_levels], ids=["one level", "two levels"])
def test_many_samples_of_another_posterior_come_close(images: Tensor, build: object) -> None:
    """Importance sampling makes up for a posterior that is wrong: close with 5,000 samples, and a bound with one."""
    family, networks, mean, covariance = build()  # type: ignore[operator]
    expected = exact(images, mean, covariance)
    many = family.log_likelihood(networks, images, None, num_samples=5_000, chunk=2_000, seed=0)
    assert many.dtype == torch.float64
    torch.testing.assert_close(many, expected, rtol=0, atol=0.08)
    ones = torch.stack(
        [family.log_likelihood(networks, images, None, num_samples=1, chunk=10, seed=seed) for seed in range(200)]
    )
    assert ones.mean() < expected.mean() - 0.1  # the ELBO lies below, by the posterior's KL divergence
    assert ones.mean() < many.mean()


@pytest.mark.parametrize("binarise", [False, True])
@pytest.mark.parametrize("prior", ["flow", "standard", "vampprior"])
@pytest.mark.parametrize("levels", [1, 2])
def test_the_chunk_does_not_matter(levels: int, prior: str, binarise: bool) -> None:
    """Estimates are the same whether latents are decoded one by one, in odd pieces, or all at once."""
    values = {"latent_dim": 5, "levels": levels, "prior": prior, "num_pseudo_inputs": 6, "conditional": True}
    chosen = config(likelihood="bernoulli", binarise=binarise, **values)
    networks = models.networks_of(chosen, models.SMALL)
    family = VAE(chosen, models.SMALL)
    images = torch.rand(4, *models.SMALL.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.tensor([0, 1, 2, 1])
    all_at_once, *others = (
        family.log_likelihood(networks, images, labels, num_samples=7, chunk=chunk, seed=4)
        for chunk in (1_000, 1, 5, 16)
    )
    for other in others:
        torch.testing.assert_close(other, all_at_once, rtol=1e-6, atol=1e-4)
    another_seed = family.log_likelihood(networks, images, labels, num_samples=7, chunk=16, seed=5)
    assert (another_seed - all_at_once).abs().min() > 1e-4
    another_class = family.log_likelihood(networks, images, (labels + 1) % 3, num_samples=7, chunk=16, seed=4)
    assert (another_class - all_at_once).abs().min() > 1e-5


def test_parts_of_a_set_are_estimated_as_the_whole(images: Tensor) -> None:
    """With the number of their first image, the parts draw the latents of the whole, and no others' a second time."""
    family, networks, _, _ = one_level(1.5)
    same = images[:1].expand(6, -1, -1, -1)
    whole = family.log_likelihood(networks, same, None, num_samples=3, chunk=100, seed=0)
    parts = [
        family.log_likelihood(networks, same[first : first + 2], None, num_samples=3, chunk=100, seed=0, first=first)
        for first in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert len(whole.unique()) == 6


def test_no_more_than_a_chunk_is_decoded_at_once() -> None:
    """Memory is bounded by ``chunk``, over images and samples together."""
    family, networks, _, _ = one_level(1.0)
    decoder, sizes = decoder_of(networks), []
    decoder.stack.register_forward_hook(lambda _module, args, _out: sizes.append(len(args[0])))
    images = torch.zeros(10, 1, 3, 4)
    for num_samples, chunk in ((50, 8), (3, 8), (8, 8)):
        sizes.clear()
        family.log_likelihood(networks, images, None, num_samples=num_samples, chunk=chunk, seed=0)
        assert max(sizes) <= chunk
        assert sum(sizes) == 10 * num_samples


def test_binarised_pixels_follow_their_brightness() -> None:
    """A pixel becomes 1 as often as it is bright; black and white never change."""
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 1, 4).expand(20_000, -1, -1, -1)
    uniform = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    shares = (binarised(images, uniform) == 1.0).float().mean(0).flatten()
    assert set(binarised(images, uniform).unique().tolist()) == {-1.0, 1.0}
    assert (shares[0], shares[3]) == (0.0, 1.0)
    assert shares[1:3].tolist() == pytest.approx([0.25, 0.5], abs=0.02)


def test_gaussian_estimates_do_not_look_at_what_they_measure() -> None:
    """The standard deviation of an evaluation is the learned one, so an image's estimate knows nothing of its companions."""
    chosen = config(latent_dim=4, conditional=False)
    networks, family = models.networks_of(chosen, models.SMALL), VAE(chosen, models.SMALL)
    images = torch.rand(3, *models.SMALL.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with_others = family.log_likelihood(networks, images, None, num_samples=3, chunk=100, seed=0)
    companions = images.clone()
    companions[1:] = -1.0
    assert with_others[0] == family.log_likelihood(networks, companions, None, num_samples=3, chunk=100, seed=0)[0]
    assert math.isfinite(float(with_others.sum()))
