"""The log-likelihood of real images under a model that has one, as a score beside the other metrics.

In: a bundle of a family with the capability `Likelihood`, and real images. Out: the mean in nats per image, with its standard
error and card; its floor is the same of training images, so that the gap between both shows memorising.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from genworker import families
from genworker.bundle import Bundle
from genworker.families.base import Likelihood
from genworker.metrics.cards import Card, Score
from genworker.training.loader import images_of
from genworker.training.reference import RealImages, RealSet

METRIC = "log-likelihood"
NUMBER = "log_likelihood"
_CHUNK = 1_000  # latents decoded at once


def has_likelihood(bundle: Bundle) -> bool:
    """Whether the bundle's family can say how likely an image is."""
    return isinstance(families.make(bundle.info.family, bundle.info.image_schema), Likelihood)


def score_likelihood(
    bundle: Bundle, real: RealImages, *, num_images: int, num_samples: int, seed: int, device: torch.device
) -> tuple[Score, Score]:
    """The score of held-out images and its floor, of as many training images.

    Args:
        bundle: of a family that `has_likelihood`.
        real: what `genworker.training.reference.real_images` gives.
        num_images: at most so many of the reference.
        num_samples: latents per image; the estimate is a lower bound that more make tighter (Burda et al. 2016).
        seed: of the latents.
        device: to compute on.
    """
    family = families.make(bundle.info.family, bundle.info.image_schema)
    assert isinstance(family, Likelihood)
    networks = bundle.networks().to(device)
    reference = real.reference.some(num_images)
    held_out, train = (
        _estimate(family, networks, images, num_samples, seed)
        for images in (reference, real.train.some(len(reference)))
    )
    card = Card(
        metric=METRIC,
        label="log-likelihood (nats)",
        extractor="none",
        extractor_digest="",
        reference=reference.digest(),
        split=real.split,
        num_real=len(held_out),
        num_generated=0,
        image_size="x".join(map(str, bundle.info.image_schema.pixel_shape)),
        dtype="float32",
        # What is a likelihood of what, the family's config says: binarised pixels and densities are different scales.
        settings={"samples_per_image": num_samples} | _scale(bundle),
    )
    return Score(_numbers(held_out), card), Score(_numbers(train), card)


def _estimate(
    family: Likelihood, networks: nn.ModuleDict, images: RealSet, num_samples: int, seed: int
) -> npt.NDArray[np.float64]:
    """Nats of each image that can be decoded."""
    parts: list[npt.NDArray[np.float64]] = []
    for batch in images.batches():
        # No two images share latents, so that the standard error may take their estimates for independent.
        first = sum(map(len, parts))
        labels = None if batch.labels is None else torch.from_numpy(batch.labels)
        estimate = family.log_likelihood(
            networks,
            images_of(batch.pixels),
            labels,
            num_samples=num_samples,
            chunk=_CHUNK,
            seed=seed,
            first=first,
        )
        parts.append(estimate.cpu().numpy())
    return np.concatenate(parts)


def _numbers(nats: npt.NDArray[np.float64]) -> dict[str, float]:
    return {NUMBER: float(nats.mean()), f"{NUMBER}_error": float(nats.std(ddof=1)) / len(nats) ** 0.5}


def _scale(bundle: Bundle) -> dict[str, object]:
    config = bundle.info.family.model_dump(mode="json")
    return {key: config[key] for key in ("likelihood", "binarise") if key in config}
