"""Pixel likelihoods p(x | z) of a VAE, from the channels that its decoder puts out.

In: parameters float32 [N, P, H, W] and images [N, C, H, W] in [-1, 1]. Out: mean images, and log p(x | z) of each image in
nats, summed over pixels and channels, always in float32. ``bernoulli`` takes pixels as probabilities or, binarised, as 0 and
1; ``gaussian`` shares one standard deviation, set to its optimum (Rybkin et al., "Simple and effective VAE training with
calibrated decoders", ICML 2021); ``logistic_mixture`` gives the probability of each of the 256 values of a pixel (Salimans
et al., "PixelCNN++", ICLR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LikelihoodName = Literal["bernoulli", "gaussian", "logistic_mixture"]
GlobalMean = Callable[[Tensor], Tensor]

_HALF_LEVEL = 1.0 / 255.0  # half the distance of two neighbouring pixel values in [-1, 1]
_LOG_SCALE_RANGE = (-7.0, 7.0)  # of the logistics: from a fraction of a pixel value to flat
_SIGMA_SPEED = 10.0  # Adam moves a parameter by about the learning rate per step; the log of sigma has further to go


def logits_mean(logits: Tensor) -> Tensor:
    """Logits to images in [-1, 1]."""
    # tanh(l / 2) = 2 sigmoid(l) - 1: the mean of a Bernoulli pixel with logit l, moved from [0, 1] to [-1, 1].
    return torch.tanh(logits / 2)


class PixelLikelihood(nn.Module):
    """What the likelihoods have in common; ``parameter_channels`` is P."""

    def __init__(self, parameter_channels: int) -> None:
        super().__init__()
        self.parameter_channels = parameter_channels

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean image, in [-1, 1]."""
        raise NotImplementedError

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Log density or probability p(x | z) of each image, in nats, float32 [N]."""
        raise NotImplementedError

    def training_log_prob(self, parameters: Tensor, images: Tensor, global_mean: GlobalMean) -> Tensor:
        """The same for a training step, where a likelihood may look at the whole global batch; float32 [N]."""
        del global_mean
        return self.log_prob(parameters, images)


class BernoulliPixels(PixelLikelihood):
    """Independent pixels of 0 and 1; for values in between, the cross-entropy, which is no likelihood of them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def mean(self, parameters: Tensor) -> Tensor:
        """See `PixelLikelihood.mean`."""
        return logits_mean(parameters)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """See `PixelLikelihood.log_prob`."""
        targets = (images.float() + 1.0) / 2.0
        return -F.binary_cross_entropy_with_logits(parameters.float(), targets, reduction="none").sum((1, 2, 3))


class GaussianPixels(PixelLikelihood):
    """Independent normal pixels of one shared standard deviation; the density is over pixel values in [-1, 1].

    In a training step sigma is its optimum, the root mean squared error of the global batch. Outside training (an
    evaluation must not choose sigma by what it evaluates) it is ``log_sigma``, which training lets follow that optimum.
    """

    def __init__(self, channels: int, min_sigma: float) -> None:
        super().__init__(channels)
        self.min_sigma = min_sigma
        self.scaled_log_sigma = nn.Parameter(torch.zeros(()))

    @property
    def log_sigma(self) -> Tensor:
        """The natural logarithm of sigma, as learned."""
        return (self.scaled_log_sigma.float() * _SIGMA_SPEED).clamp(min=math.log(self.min_sigma))

    def mean(self, parameters: Tensor) -> Tensor:
        """See `PixelLikelihood.mean`."""
        return logits_mean(parameters)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """See `PixelLikelihood.log_prob`."""
        return _normal_log_prob(self._squared_error(parameters, images), self.log_sigma, images[0].numel())

    def training_log_prob(self, parameters: Tensor, images: Tensor, global_mean: GlobalMean) -> Tensor:
        """See `PixelLikelihood.training_log_prob`."""
        squared = self._squared_error(parameters, images)
        # At the optimum the derivative of the mean by sigma is zero, so a constant sigma gives the exact gradient.
        optimum = (global_mean(squared.mean()) / images[0].numel()).sqrt().clamp(min=self.min_sigma).log()
        follow = 0.5 * (self.scaled_log_sigma.float() * _SIGMA_SPEED - optimum).square()
        # Adds the gradient that pulls log_sigma to the optimum, and nothing to the value.
        return _normal_log_prob(squared, optimum, images[0].numel()) - (follow - follow.detach())

    def _squared_error(self, parameters: Tensor, images: Tensor) -> Tensor:
        return (images.float() - logits_mean(parameters.float())).square().sum((1, 2, 3))


class LogisticMixturePixels(PixelLikelihood):
    """Each pixel a mixture of discretised logistics, whose channels depend on the ones before them linearly.

    Args:
        channels: of the images, C.
        num_components: of the mixture; they are shared by the channels of a pixel.
    """

    def __init__(self, channels: int, num_components: int) -> None:
        pairs = [(later, earlier) for later in range(channels) for earlier in range(later)]
        super().__init__(num_components * (1 + 2 * channels + len(pairs)))
        self.pairs = pairs
        self.channels = channels
        self.num_components = num_components

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Log weights [N, K, H, W], means and log scales [N, C, K, H, W], and a coefficient [N, K, H, W] per pair."""
        parts = torch.unflatten(parameters.float(), 1, (-1, self.num_components))
        weights, means, log_scales, coefficients = torch.split(
            parts, [1, self.channels, self.channels, len(self.pairs)], dim=1
        )
        return (
            F.log_softmax(weights[:, 0], dim=1),
            means,
            log_scales.clamp(*_LOG_SCALE_RANGE),
            list(torch.tanh(coefficients).unbind(1)),
        )

    def mean(self, parameters: Tensor) -> Tensor:
        """See `PixelLikelihood.mean`."""
        log_weights, means, _, coefficients = self._split(parameters)
        expected = list(means.unbind(1))
        for (later, earlier), coefficient in zip(self.pairs, coefficients, strict=True):
            expected[later] = expected[later] + coefficient * expected[earlier]
        images = (torch.stack(expected, 1).clamp(-1.0, 1.0) * log_weights.exp()[:, None]).sum(2)
        return images.clamp(-1.0, 1.0).to(parameters.dtype)  # weights may sum to a little more than 1

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """See `PixelLikelihood.log_prob`; a probability of pixel values, not a density."""
        log_weights, means, log_scales, coefficients = self._split(parameters)
        x = images.float()
        centres = list(means.unbind(1))
        for (later, earlier), coefficient in zip(self.pairs, coefficients, strict=True):
            centres[later] = centres[later] + coefficient * x[:, earlier, None]
        x = x[:, :, None]  # [N, C, 1, H, W]
        from_centre, precision = x - torch.stack(centres, 1), torch.exp(-log_scales)
        upper, lower = precision * (from_centre + _HALF_LEVEL), precision * (from_centre - _HALF_LEVEL)
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for a > b: no difference of nearly equal numbers.
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        between = below + above + torch.log(-torch.expm1(-2 * _HALF_LEVEL * precision))
        # The first and the last value take all that lies beyond them.
        inner = torch.where(x < -1 + _HALF_LEVEL, below, torch.where(x > 1 - _HALF_LEVEL, above, between))
        return torch.logsumexp(inner.sum(1) + log_weights, dim=1).sum((1, 2))


def _normal_log_prob(squared: Tensor, log_sigma: Tensor, num_pixels: int) -> Tensor:
    return -0.5 * squared * torch.exp(-2 * log_sigma) - num_pixels * (log_sigma + 0.5 * math.log(2 * math.pi))
