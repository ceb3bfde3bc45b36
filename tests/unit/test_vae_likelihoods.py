"""Pixel likelihoods: they sum to one, agree with torch's distributions, and put their means where they belong."""

from __future__ import annotations

import math

import pytest
import torch

from genworker.families.likelihoods import BernoulliPixels, GaussianPixels, LogisticMixturePixels, PixelLikelihood
from genworker.families.priors import VampPrior, gaussian_kl, gaussian_log_prob

LEVELS = torch.arange(256) / 127.5 - 1.0


def parameters_of(likelihood: PixelLikelihood, count: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, likelihood.parameter_channels, 2, 3, generator=generator) * scale


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_logistic_mixture_is_a_probability_of_grey_values(scale: float) -> None:
    """The probabilities of the 256 values of a grey pixel sum to one, for narrow and wide components."""
    likelihood = LogisticMixturePixels(1, 3)
    one = parameters_of(likelihood, 1, scale)[:, :, :1, :1]
    log_probs = likelihood.log_prob(one.expand(256, -1, -1, -1), LEVELS.view(256, 1, 1, 1))
    assert torch.logsumexp(log_probs.double(), 0).item() == pytest.approx(0.0, abs=1e-4)


def test_the_logistic_mixture_is_a_probability_of_colours() -> None:
    """Over all pairs of values of two dependent channels the probabilities sum to one as well."""
    likelihood = LogisticMixturePixels(2, 3)
    assert likelihood.parameter_channels == 3 * (1 + 2 * 2 + 1)
    one = parameters_of(likelihood, 1)[:, :, :1, :1]
    pairs = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    log_probs = likelihood.log_prob(one.expand(len(pairs), -1, -1, -1), pairs)
    assert torch.logsumexp(log_probs.double(), 0).item() == pytest.approx(0.0, abs=1e-4)


def test_channels_depend_on_the_ones_before() -> None:
    """The probability of green given red changes with red, and the components number as in PixelCNN++: 10 per RGB pixel."""
    likelihood = LogisticMixturePixels(3, 5)
    assert likelihood.parameter_channels == 10 * 5
    one = parameters_of(likelihood, 1)[:, :, :1, :1].expand(256, -1, -1, -1)

    def green_given(red: float) -> torch.Tensor:
        images = torch.stack([torch.full_like(LEVELS, red), LEVELS, torch.zeros_like(LEVELS)], 1).view(256, 3, 1, 1)
        return torch.softmax(likelihood.log_prob(one, images), 0)

    assert (green_given(-0.8) - green_given(0.8)).abs().sum() > 0.01


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_mean_of_the_mixture_is_its_expectation(channels: int) -> None:
    """For narrow components away from the edges the mean image is what sampling averages to."""
    likelihood = LogisticMixturePixels(channels, 2)
    parameters = parameters_of(likelihood, 1, 0.2)[:, :, :1, :1].clone()
    weights_and_means = 2 * (1 + channels)
    parameters[:, weights_and_means : weights_and_means + 2 * channels] = -4.0
    mean = likelihood.mean(parameters).flatten()
    if channels == 1:
        grid = LEVELS.view(256, 1, 1, 1)
    else:
        grid = torch.cartesian_prod(*[LEVELS[64:192:2]] * channels).view(-1, channels, 1, 1)
    probabilities = torch.softmax(likelihood.log_prob(parameters.expand(len(grid), -1, -1, -1), grid).double(), 0)
    expected = (probabilities[:, None] * grid.flatten(1)).sum(0)
    torch.testing.assert_close(mean.double(), expected, rtol=0, atol=0.01)


def test_extreme_parameters_stay_finite() -> None:
    """Components far from the pixel, and very narrow ones, give finite log probabilities and gradients."""
    likelihood = LogisticMixturePixels(1, 2)
    for scale in (30.0, 300.0):
        parameters = parameters_of(likelihood, 4, scale).requires_grad_(True)
        log_prob = likelihood.log_prob(
            parameters, LEVELS[torch.tensor([0, 1, 128, 255])].view(4, 1, 1, 1).expand(4, 1, 2, 3)
        )
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all()


def test_bernoulli_agrees_with_torch() -> None:
    """Binary images have the log probability that torch's Bernoulli gives them."""
    likelihood = BernoulliPixels(2)
    parameters = parameters_of(likelihood, 5, 3.0)
    bits = (torch.rand(parameters.shape, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    expected = torch.distributions.Bernoulli(logits=parameters).log_prob(bits).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(parameters, 2 * bits - 1), expected)


def test_sigma_is_optimal_and_remembered() -> None:
    """In training the density is that of the best sigma; following it makes the remembered sigma the same."""
    likelihood = GaussianPixels(1, 0.01)
    parameters = parameters_of(likelihood, 6)
    images = torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    best = (images - likelihood.mean(parameters)).square().mean().sqrt()
    expected = torch.distributions.Normal(likelihood.mean(parameters), best).log_prob(images).sum((1, 2, 3))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -likelihood.training_log_prob(parameters, images, torch.Tensor.detach).mean()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(-loss.detach(), expected.mean())
    assert likelihood.log_sigma.exp().item() == pytest.approx(best.item(), rel=0.01)
    torch.testing.assert_close(likelihood.log_prob(parameters, images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "mixture"])
def test_bfloat16_parameters_are_computed_with_in_float32(name: str) -> None:
    """What comes from a bfloat16 decoder is summed in float32: the same as of the rounded parameters in float32."""
    likelihood = {
        "bernoulli": BernoulliPixels(1),
        "gaussian": GaussianPixels(1, 0.01),
        "mixture": LogisticMixturePixels(1, 2),
    }[name]
    parameters = parameters_of(likelihood, 3).bfloat16()
    images = torch.zeros(3, 1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = likelihood.log_prob(parameters, images)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, likelihood.log_prob(parameters.float(), images))


def test_divergences_agree_with_torch() -> None:
    """Closed forms of normal distributions."""
    generator = torch.Generator().manual_seed(0)
    mean, logvar, to_mean, to_logvar = torch.randn(4, 5, 3, generator=generator).unbind(0)
    ours = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    other = torch.distributions.Normal(to_mean, (0.5 * to_logvar).exp())
    expected = torch.distributions.kl_divergence(ours, other)
    torch.testing.assert_close(gaussian_kl(mean, logvar, to_mean, to_logvar), expected)
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(gaussian_kl(mean, logvar), torch.distributions.kl_divergence(ours, standard))
    torch.testing.assert_close(gaussian_log_prob(to_mean, mean, logvar), ours.log_prob(to_mean).sum(1))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_the_vampprior_is_the_mixture_of_its_posteriors(num_classes: int) -> None:
    """Its density is torch's mixture of the same components, of one class only where there are classes."""
    torch.manual_seed(0)
    prior = VampPrior(7, (1, 2, 2), num_classes)
    mean, logvar, z = torch.randn(7, 4), torch.randn(7, 4), torch.randn(5, 4) * 2
    labels = torch.tensor([0, 1, 2, 0, 1]) if num_classes else None
    ours = prior.log_prob(z, labels, mean, logvar)
    _, classes = prior.pseudo_inputs()
    for row in range(5):
        chosen = torch.arange(7) if labels is None or classes is None else torch.nonzero(classes == labels[row])[:, 0]
        components = torch.distributions.Independent(
            torch.distributions.Normal(mean[chosen], (0.5 * logvar[chosen]).exp()), 1
        )
        even = torch.distributions.Categorical(torch.full((len(chosen),), 1 / len(chosen)))
        mixture = torch.distributions.MixtureSameFamily(even, components)
        assert ours[row].item() == pytest.approx(mixture.log_prob(z[row]).item(), abs=1e-4)
    assert not math.isnan(float(ours.sum()))
