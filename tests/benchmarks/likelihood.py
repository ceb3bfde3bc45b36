"""Log-likelihood of VAEs on dynamically binarised Fashion-MNIST, in one command per configuration.

`python -m tests.benchmarks.likelihood mlp --out runs/mlp` trains on all 60,000 training images, going on from the newest
checkpoint if there is one, and prints on the test split: the importance-weighted estimate of 5,000 samples, the ELBO, the
gaps, the active units. Images are drawn as 0 and 1 anew whenever they are trained on, and once for the test.

5,000 samples of each of 10,000 images are 50 million passes of the decoder, so by default a few hundred images get them,
more get 50, all get one. The mean of all, corrected by the mean differences that more samples make on the images that got
them, has a standard error, which is stated; only what the samples of images left out would have added is uncertain.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genworker import bundle, families
from genworker.errors import ObjectMissingError
from genworker.families.base import Batch, Likelihood, Networks
from genworker.report.sheet import Block, contact_sheet
from genworker.sampling.latents import latents
from genworker.sampling.pixels import quantise
from genworker.sources import open_source
from genworker.sources.base import Source
from genworker.sources.fashion_mnist import FashionMnistConfig
from genworker.stores import open_store
from genworker.stores.base import Store
from genworker.training import loop
from genworker.training.collectives import WorkerGroup
from genworker.training.loader import images_of
from genworker.training.record import BUNDLE_PREFIX, claim
from genworker.training.spec import TrainSpec
from genworker.training.step import Context

_BINARY = {
    "name": "vae",
    "conditional": False,
    "likelihood": "bernoulli",
    "binarise": True,
    "prior": "standard",
    "free_bits": 0.0,
    "second_stage_every": 4,
    "ema_halflife_images": 60_000,
}
_SMALL_STACK = {"widths": [64, 32], "blocks": [1, 0], "patch": 2}
_TWO_LEVELS_VAMPPRIOR = {
    "levels": 2,
    "latent_dim": 64,
    "prior": "vampprior",
    "num_pseudo_inputs": 150,
    "encoder": _SMALL_STACK,
    "decoder": _SMALL_STACK,
    "lr": {"start": 2.5e-3, "end": 1e-5},
}
# Published for Fashion-MNIST, in nats, 5,000 samples: VAE of 2 x 300 gated units with 40 latents 228.70, with a VampPrior
# 227.35, convolutional of two levels 225.38 (Norouzi et al., "Exemplar VAE", NeurIPS 2020).
CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {
        "aim": 228.7,
        "family": {"network": "mlp", "latent_dim": 40, "lr": {"start": 1.5e-3, "end": 1e-5}},
        "training": {"images": 18_000_000, "batch_size": 256},
    },
    "mlp-vampprior": {
        "aim": 227.4,
        "family": {
            "network": "mlp",
            "latent_dim": 40,
            "prior": "vampprior",
            "num_pseudo_inputs": 250,
            "lr": {"start": 1.5e-3, "end": 1e-4},
            "ema_halflife_images": 300_000,
        },
        # Half as long as without, because every step encodes the pseudo-inputs too; so the weights are averaged for longer.
        "training": {"images": 9_000_000, "batch_size": 256},
    },
    "mlp-iwae": {
        "aim": 228.7,
        "family": {
            "network": "mlp",
            "latent_dim": 40,
            "objective": "iwae",
            "iwae_samples": 5,
            "lr": {"start": 1.5e-3, "end": 1e-5},
        },
        "training": {"images": 18_000_000, "batch_size": 256, "precision": "bfloat16"},
    },
    "conv": {
        "aim": 228.7,
        "family": {
            "latent_dim": 40,
            "encoder": _SMALL_STACK,
            "decoder": _SMALL_STACK,
            "lr": {"start": 2e-3, "end": 1e-5},
        },
        "training": {"images": 6_000_000, "batch_size": 128, "precision": "bfloat16"},
    },
    "conv-2level": {
        "aim": 225.4,
        "family": {
            "levels": 2,
            "latent_dim": 64,
            "encoder": _SMALL_STACK,
            "decoder": _SMALL_STACK,
            "lr": {"start": 2e-3, "end": 1e-5},
        },
        "training": {"images": 6_000_000, "batch_size": 128},
    },
    "conv-2level-vampprior": {
        "aim": 225.4,
        "family": _TWO_LEVELS_VAMPPRIOR,
        "training": {"images": 10_000_000, "batch_size": 256, "precision": "bfloat16"},
    },
    "conv-2level-vampprior-iwae": {
        "aim": 225.4,
        "family": _TWO_LEVELS_VAMPPRIOR
        | {
            "objective": "iwae",
            "iwae_samples": 5,
            "iwae_start": 0.72,  # five passes of the decoder for the last quarter of the images only
            "second_stage_every": 16,
        },
        "training": {"images": 10_000_000, "batch_size": 256, "precision": "bfloat16"},
    },
}
_SLICE = 100  # images that share one call
_SEED = 1_000_000


def spec_of(name: str, images: int | None) -> TrainSpec:
    """The training spec of a configuration."""
    config = CONFIGS[name]
    values = {
        "data": {"name": "fashion-mnist"},
        "family": _BINARY | config["family"],
        "training": {"holdout_share": 0.0, "report_every_images": 60_000, "checkpoint_every_images": 180_000}
        | {"precision": "float32", "callbacks": []}
        | config["training"],
        "evaluation": {"num_samples": 0},
    }
    if images is not None:
        values["training"]["images"] = images
    return TrainSpec.parse(values, origin=f"configuration {name}")


def estimates(
    family: Likelihood, networks: Networks, images: Tensor, *, num_samples: int, chunk: int, store: Store, key: str
) -> Tensor:
    """Estimates of each image, float64 [N]; what was estimated before is read from ``key``, and new slices are added to it."""
    try:
        done: list[list[float]] = json.loads(store.get(key))
    except ObjectMissingError:
        done = []
    for first in range(len(done) * _SLICE, len(images), _SLICE):
        values = family.log_likelihood(
            networks,
            images[first : first + _SLICE],
            None,
            num_samples=num_samples,
            chunk=chunk,
            seed=_SEED + first,
        )
        done.append(values.tolist())
        store.put(key, json.dumps(done).encode(), overwrite=True)
    return torch.tensor([value for part in done for value in part], dtype=torch.float64)[: len(images)]


def evaluate(name: str, out: str, store: Store, args: argparse.Namespace) -> None:
    """Print the table of a trained configuration, and leave a sheet of its samples."""
    loaded = bundle.load(store, BUNDLE_PREFIX)
    networks, lineage = loaded.networks(), loaded.info.lineage
    family = families.make(loaded.info.family, loaded.info.image_schema)
    assert isinstance(family, Likelihood)
    began = time.perf_counter()
    test = images_of_split("test", 10_000)
    train = images_of_split("train", args.train_images)

    def estimate(images: Tensor, what: str, num_samples: int) -> Tensor:
        key = f"likelihood/{what}-{num_samples}.json"
        return estimates(family, networks, images, num_samples=num_samples, chunk=args.chunk, store=store, key=key)

    elbo, elbo_train = estimate(test, "test", 1), estimate(train, "train", 1)
    few = estimate(test[: args.images_of_few], "test", args.few_samples)
    many = estimate(test[: args.images_of_many], "test", args.num_samples)
    steps = [few - elbo[: len(few)], many - few[: len(many)]]
    nll = -(elbo.mean() + sum(step.mean() for step in steps))
    variances = [step.var() / len(step) for step in steps if len(step) < len(test)]
    error = sum(variances, torch.zeros(())).sqrt()
    ctx = Context(0, WorkerGroup(0, 1, 1.0), torch.device("cpu"), num_draws=1_000)
    measures = family.examine(networks, Batch(train[:1_000], None), Batch(test[:1_000], None), ctx)  # type: ignore[attr-defined]
    aim = CONFIGS[name]["aim"]
    table = Table("figure", "value", title=f"{name}, {lineage.images_seen:,} images seen")
    for figure, value in {
        f"negative log-likelihood, {args.num_samples} samples, nats": f"{nll:.2f} (standard error {error:.2f})",
        "aim": f"{aim} ({'met' if nll <= aim else 'missed'})",
        f"images with {args.num_samples:,} samples": f"{len(many):,} of {len(test):,}",
        f"images with {args.few_samples} samples": f"{len(few):,} of {len(test):,}",
        "negative ELBO, test": f"{-elbo.mean():.2f}",
        "gap of the ELBO to the estimate": f"{-elbo.mean() - nll:.2f}",
        f"negative ELBO, {len(train):,} training images": f"{-elbo_train.mean():.2f}",
        "gap between training and test images": f"{elbo_train.mean() - elbo.mean():.2f}",
        "active units": f"{measures['active_units']:.0f} of {loaded.info.family.latent_dim}"
        + (f" ({measures['active_units_top']:.0f} on top)" if "active_units_top" in measures else ""),
        "seconds to evaluate now": f"{time.perf_counter() - began:.0f}",
    }.items():
        table.add_row(figure, value)
    Console(width=120).print(table)
    picture = Path(out) / "samples.png"
    sample_sheet(loaded, picture)
    print(f"samples: {picture}")


@torch.inference_mode()
def sample_sheet(loaded: bundle.Bundle, path: Path) -> None:
    """Draw 100 samples."""
    generator = loaded.generator()
    pixels = quantise(generator(torch.from_numpy(latents(0, 0, 100, generator.latent_dim)), None))
    contact_sheet(Block(pixels), title=f"{loaded.info.lineage.images_seen:,} images seen").save(path)


def images_of_split(split: str, count: int) -> Tensor:
    """The first images of a split, float32 [count, 1, 28, 28] in [-1, 1]."""
    source: Source = open_source(FashionMnistConfig(split=split, limit=count))  # type: ignore[arg-type]
    return images_of(source.read(torch.arange(len(source)).numpy()).pixels)


def main() -> None:
    """Train, then evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=sorted(CONFIGS))
    parser.add_argument("--out", required=True, help="folder of the run; a run that is there goes on")
    parser.add_argument("--images", type=int, help="train on so many images instead of what the configuration says")
    parser.add_argument("--evaluate-only", action="store_true", help="of the bundle that a finished run left")
    parser.add_argument("--num-samples", type=int, default=5_000, help="of the estimate")
    parser.add_argument("--images-of-many", type=int, default=500, help="test images that get all samples")
    parser.add_argument("--images-of-few", type=int, default=10_000, help="test images that get some samples")
    parser.add_argument("--few-samples", type=int, default=50, help="that those images get")
    parser.add_argument("--train-images", type=int, default=60_000, help="that the training ELBO is measured on")
    parser.add_argument("--chunk", type=int, default=1_000, help="latents decoded at once")
    args = parser.parse_args()
    store = open_store(args.out)
    if not args.evaluate_only:
        train(spec_of(args.config, args.images), store)
    evaluate(args.config, args.out, store, args)


def train(spec: TrainSpec, store: Store) -> None:
    """Train to the end, from the newest checkpoint on."""
    claim(spec, store)

    def report(metrics: dict[str, Any]) -> None:
        figures = ("elbo.negative_elbo", "elbo.kl", "active_units", "images_per_second")
        line = " ".join(f"{name} {metrics[name]:.2f}" for name in figures if name in metrics)
        print(f"{metrics['images_seen']:>9,} {line}", flush=True)

    hooks = loop.Hooks(on_report=report, on_event=lambda text: print(text, flush=True))
    began = time.process_time()
    result = loop.train(
        spec, open_source(spec.data), store, rank=0, world_size=1, device=torch.device("cpu"), hooks=hooks
    )
    print(
        f"trained to {result.images_seen:,} images, {time.process_time() - began:.0f} CPU seconds in this run",
        flush=True,
    )


if __name__ == "__main__":
    main()
