"""genworker evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genworker import metrics as metric_table

if TYPE_CHECKING:
    from genworker.bundle import Bundle
    from genworker.metrics.cards import Card
    from genworker.stores.base import Store
    from genworker.training.evaluation import Evaluation
    from genworker.training.spec import TrainSpec


@click.command()
@click.argument("model")
@click.option(
    "--data", metavar="SPEC", help="A spec whose data to compare with; default: what the model was trained on."
)
@click.option(
    "--split",
    type=click.Choice(["held-out", "test"]),
    default="held-out",
    show_default=True,
    help="Real images to compare with: the share held out of training, or the data's test split.",
)
@click.option("--num-samples", type=click.IntRange(min=20), default=10_000, show_default=True, help="To generate.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the latents.")
@click.option(
    "--metrics",
    "names",
    metavar="NAME,...",
    help=f"Of {', '.join(metric_table.names())}; default: all that apply and take no minutes.",
)
@click.option(
    "--cache", metavar="URL", help="Where the feature extractor is kept, to be trained once; default: with the model."
)
@click.option(
    "--likelihood-samples",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Latents per image for the log-likelihood of models that have one; 0 leaves it out.",
)
@click.option(
    "--likelihood-images", type=click.IntRange(min=2), default=500, show_default=True, help="Real images for it."
)
@click.option("--use-gpu", is_flag=True, help="Generate on a GPU.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write numbers and cards as JSON.")
def evaluate(
    *,
    model: str,
    data: str | None,
    split: str,
    num_samples: int,
    seed: int,
    names: str | None,
    cache: str | None,
    likelihood_samples: int,
    likelihood_images: int,
    use_gpu: bool,
    out: Path | None,
) -> None:
    """Say how good MODEL, a bundle or a finished run, is: numbers of its samples, the floor beside them, and their cards.

    The floor is what real training images score in place of generated ones: the best that can be hoped for.
    """
    from genworker.cli.display import tell_remarks
    from genworker.device import pick_device
    from genworker.stores import open_store
    from genworker.training.evaluation import evaluate as run
    from genworker.training.log_likelihood import has_likelihood
    from genworker.training.reference import real_images

    store = open_store(model)
    bundle = _bundle_of(store)
    spec = _spec_of(bundle, data, store.url)
    real = real_images(spec.data, spec.training.holdout_share, "test" if split == "test" else "held-out")
    tell_remarks("evaluate", real.remarks)
    device = pick_device(use_gpu=use_gpu)
    evaluation = run(
        bundle,
        real,
        num_samples=num_samples,
        seed=seed,
        names=None if names is None else [name.strip() for name in names.split(",")],
        cache=open_store(cache) if cache else store,
        device=device,
    )
    if likelihood_samples and has_likelihood(bundle):
        evaluation = evaluation.with_likelihood(
            bundle, real, num_images=likelihood_images, num_samples=likelihood_samples, seed=seed, device=device
        )
    if out is not None:
        text = {
            "bundle": bundle.digest,
            "images_seen": bundle.info.lineage.images_seen,
            "seed": seed,
            **evaluation.to_json(),
        }
        out.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    _show(evaluation, bundle)


def _bundle_of(store: Store) -> Bundle:
    from genworker import bundle as bundles
    from genworker.cli.look import kind_of
    from genworker.errors import BundleError, UsageError
    from genworker.stores import child_url
    from genworker.stores.base import is_there
    from genworker.training import record

    kind = kind_of(store)
    if kind == "dataset":
        raise UsageError(f"{store.url}: is a dataset; give the bundle that it was made from, or a training run")
    if kind == "bundle":
        return bundles.load(store)
    try:
        return bundles.load(store, record.BUNDLE_PREFIX)
    except BundleError as err:
        best = ""
        if is_there(store, record.BEST_PREFIX + bundles.BUNDLE_KEY):
            best = f"evaluate {child_url(store.url, 'best')}, the best checkpoint that was measured so far, or "
        raise UsageError(
            f"{store.url}: the run has no bundle yet, it is not finished; {best}run the training command again"
        ) from err


def _spec_of(bundle: Bundle, data: str | None, url: str) -> TrainSpec:
    from genworker.config import load_spec
    from genworker.errors import UsageError
    from genworker.training.spec import TrainSpec

    if data is not None:
        return load_spec(TrainSpec, data, (), {})
    if not bundle.info.lineage.spec:
        raise UsageError(f"{url}: the bundle does not say what it was trained on; name a spec with --data")
    return TrainSpec.parse(bundle.info.lineage.spec, origin=f"the spec in the bundle at {url} (or give --data)")


def _show(evaluation: Evaluation, bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    better = metric_table.numbers() | {"log_likelihood": "high", "log_likelihood_error": "low"}
    table = Table(box=None, pad_edge=False)
    for name, justify in (("number", "left"), ("value", "right"), ("floor", "right"), ("better", "left"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, score in evaluation.scores.items():
        for position, (number, value) in enumerate(score.numbers.items()):
            floor = evaluation.floor[name].numbers[number]
            label = score.card.label if position == 0 else ""
            table.add_row(number, f"{value:.4g}", f"{floor:.4g}", better[number], label)
    console = Console(highlight=False)
    console.print(table)
    click.echo(f"model:     {bundle.info.family.name}, bundle {bundle.digest[:16]}")
    for line in dict.fromkeys(_card_line(score.card) for score in evaluation.scores.values()):
        click.echo(line)
    floors = {score.card.num_generated for score in evaluation.floor.values() if score.card.num_generated}
    click.echo(
        f"floor:     {', '.join(f'{count:,}' for count in sorted(floors))} real training images instead of samples"
    )
    click.echo(f"took:      {evaluation.seconds:.1f} s")


def _card_line(card: Card) -> str:
    extractor = "" if card.extractor == "none" else f", features of {card.extractor} {card.extractor_digest[:16]}"
    samples = f"{card.num_generated:,} samples against " if card.num_generated else f"{card.label} of "
    settings = "".join(f", {key} {value}" for key, value in card.settings.items() if card.extractor == "none")
    return (
        f"card:      {samples}{card.num_real:,} {card.split} images ({card.reference[:16]}) of {card.image_size}{extractor}, "
        f"{card.dtype}, resize {card.resize}{settings}"
    )
