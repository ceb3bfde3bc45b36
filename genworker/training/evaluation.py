"""How good a generator is: numbers of generated images beside those of as many real ones.

In: a bundle and real images. Out: an `Evaluation`: scores with their cards, and the floor, the same scores of real training
images in place of the generated ones. It computes where it is called and knows nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genworker import metrics
from genworker.bundle import Bundle
from genworker.errors import UsageError
from genworker.metrics.base import Metric
from genworker.metrics.cards import Card, Score
from genworker.metrics.classifier import ClassifierConfig
from genworker.metrics.extractor import Extractor
from genworker.sampling.latents import latents
from genworker.sampling.pixels import quantise
from genworker.schema import Int64Array, Pixels
from genworker.stores.base import Store
from genworker.training import log_likelihood
from genworker.training.extractors import get_extractor
from genworker.training.record import finite
from genworker.training.reference import RealImages

DEFAULT_SAMPLES = 2_000
_AT_ONCE = 128


@dataclass(frozen=True)
class Evaluation:
    """The outcome: scores by metric, the floor beside them, and the time it took."""

    scores: Mapping[str, Score]
    floor: Mapping[str, Score]
    seconds: float

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by name."""
        return _flat(self.scores)

    def to_json(self) -> dict[str, Any]:
        """``metrics`` and ``floor`` (numbers by name, null where not finite), ``cards`` (by metric), ``seconds``."""
        return {
            "metrics": finite(self.numbers),
            "floor": finite(_flat(self.floor)),
            "cards": {name: score.card.model_dump(mode="json") for name, score in self.scores.items()},
            "seconds": round(self.seconds, 3),
        }

    def with_likelihood(
        self, bundle: Bundle, real: RealImages, *, num_images: int, num_samples: int, seed: int, device: torch.device
    ) -> Evaluation:
        """The same, and `log_likelihood.score_likelihood` with these arguments."""
        began = time.perf_counter()
        score, floor = log_likelihood.score_likelihood(
            bundle, real, num_images=num_images, num_samples=num_samples, seed=seed, device=device
        )
        seconds = self.seconds + time.perf_counter() - began
        name = log_likelihood.METRIC
        return Evaluation({**self.scores, name: score}, {**self.floor, name: floor}, seconds)


def evaluate(
    bundle: Bundle,
    real: RealImages,
    *,
    num_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    names: Sequence[str] | None = None,
    also: Sequence[str] = (),
    cache: Store | None = None,
    config: ClassifierConfig | None = None,
    device: torch.device | None = None,
) -> Evaluation:
    """Generate samples and compare them with real images.

    Generated image i has the latent that sample i of a dataset has, and the label of real image i of the floor.

    Args:
        bundle: the generator.
        real: see `genworker.training.reference.real_images`.
        num_samples: to generate, at least 20.
        seed: of the latents.
        names: of metrics; None takes all that apply and are not costly.
        also: metrics besides those.
        cache: keeps the extractor below ``evaluation/``, so that it is trained once for the same data.
        config: of the extractor's training.
        device: the generator's; None is the CPU. Metrics are computed on the CPU.

    Returns:
        The scores. The floor has as many training images as there are samples, or all where there are fewer.

    Raises:
        UsageError: a metric is unknown or needs labels that are not there, or the data has images of another shape, or other
            classes than a conditional generator.
    """
    began = time.perf_counter()
    schema = bundle.info.image_schema
    if schema.image_shape != real.schema.image_shape:
        raise UsageError(
            f"the generator makes images of {schema.describe()}, the data has {real.schema.describe()}; evaluate it with the "
            "data that it was trained on"
        )
    labelled = bool(bundle.info.family.conditional and schema.num_classes)
    if labelled and schema.num_classes != real.schema.num_classes:
        raise UsageError(
            f"the generator makes images of {schema.num_classes} classes, the data has {real.schema.num_classes or 'none'}; "
            "evaluate it with the data that it was trained on (of Parquet, data.num_classes says how many there are)"
        )
    chosen = metrics.choose(names, also, classes=bool(real.schema.num_classes), labels=labelled)
    extractor = get_extractor(real, cache, config)
    beside = real.train.some(num_samples)
    pairs = {"generated": _new(chosen, real), "floor": _new(chosen, real)}
    num_real = 0  # fewer than the reference where some cannot be decoded
    for batch in real.reference.batches():
        num_real += len(batch.pixels)
        observed = extractor.observe(batch.pixels, batch.labels)
        for made in pairs.values():
            for metric in made.values():
                metric.update(observed, real=True)
    floor_labels: list[Int64Array] = []
    for batch in beside.batches():
        if batch.labels is not None:
            floor_labels.append(batch.labels)
        _update(pairs["floor"], extractor, batch.pixels, batch.labels)
    labels = np.resize(np.concatenate(floor_labels), num_samples) if labelled else None
    for pixels, classes in generate(bundle, num_samples, seed, labels, device or torch.device("cpu")):
        _update(pairs["generated"], extractor, pixels, classes)
    common = {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "reference": real.reference.digest(),
        "split": real.split,
        "num_real": num_real,
        "image_size": "x".join(map(str, schema.pixel_shape)),
        "dtype": "float32",
    }
    scores, floor = (
        {
            name: Score(
                metric.compute(),
                Card(
                    metric=name,
                    label=metric.label.format(extractor=extractor.name),
                    num_generated=count,
                    settings=metric.settings,
                    **common,
                ),
            )
            for name, metric in pairs[key].items()
        }
        for key, count in (("generated", num_samples), ("floor", len(beside)))
    )
    return Evaluation(scores, floor, time.perf_counter() - began)


@torch.inference_mode()
def generate(
    bundle: Bundle, num_samples: int, seed: int, labels: Int64Array | None, device: torch.device
) -> Iterator[tuple[Pixels, Int64Array | None]]:
    """Samples [0, num_samples) of a bundle in float32, as pixels uint8 [n, H, W, C], with their labels [n]."""
    generator = bundle.generator()
    assert isinstance(generator, nn.Module)
    generator.to(device)
    for start in range(0, num_samples, _AT_ONCE):
        count = min(_AT_ONCE, num_samples - start)
        z = torch.from_numpy(latents(seed, start, count, generator.latent_dim)).to(device)
        part = None if labels is None else labels[start : start + count]
        classes = None if part is None else torch.from_numpy(part).to(device)
        yield quantise(generator(z, classes)), part


def _new(names: Iterable[str], real: RealImages) -> dict[str, Metric]:
    return {name: metrics.get(name)(real.schema.num_classes) for name in names}


def _update(made: Mapping[str, Metric], extractor: Extractor, pixels: Pixels, labels: Int64Array | None) -> None:
    observed = extractor.observe(pixels, labels)
    for metric in made.values():
        metric.update(observed, real=False)


def _flat(scores: Mapping[str, Score]) -> dict[str, float]:
    return {number: value for score in scores.values() for number, value in score.numbers.items()}
