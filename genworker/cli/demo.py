"""genworker demo: the whole way of the data on real images, on one machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

_MODELS = {"gan": "fashion-tiny", "vae": "fashion-vae-tiny"}  # name -> shipped spec
_PER_CLASS = 10


@click.command()
@click.option(
    "--out", default="demo", show_default=True, metavar="DIR", help="Where to leave runs, datasets and pictures."
)
@click.option("--num-samples", type=click.IntRange(min=1), default=20_000, show_default=True, help="Samples per model.")
@click.option("--images", type=click.IntRange(min=1), help="Train on so many images instead of what the specs say.")
def demo(out: str, num_samples: int, images: int | None) -> None:
    """Train a GAN and a VAE on Fashion-MNIST, generate from both, verify, and leave pictures.

    Takes some minutes on two cores; run it again to go on after a stop.
    """
    from genworker import cluster
    from genworker.bulk.request import GenerateSpec
    from genworker.cli.display import console, size
    from genworker.cli.live import run_generation, run_training
    from genworker.cli.look import make_sheet
    from genworker.config import load_spec
    from genworker.errors import DatasetError
    from genworker.reading.verify import verify
    from genworker.stores import child_url
    from genworker.training.spec import TrainSpec

    started = time.monotonic()
    lines = []
    with cluster.connect():
        for name, preset in _MODELS.items():
            spec = load_spec(TrainSpec, preset, (), {"training.images": images})
            bundle_url = run_training(spec, child_url(out, name), title=f"train {name}")
            data_url = child_url(out, f"{name}-samples")
            request = GenerateSpec(bundle=bundle_url, out=data_url, num_samples=num_samples)
            result = run_generation(request, title=f"generate {name}")
            faults = verify(data_url)
            if faults:
                raise DatasetError("\n".join(str(fault) for fault in faults))
            picture = Path(out) / f"{name}.png"
            make_sheet(data_url, _PER_CLASS, 0, preset).save(picture, format="PNG")
            rate = (
                f"{result.samples_made / result.making_seconds:,.0f} samples/s" if result.samples_made else "was there"
            )
            lines.append(
                f"{name}: {result.manifest.num_samples:,} samples in {len(result.manifest.shards)} shards, "
                f"{size(result.manifest.num_bytes)}, {rate}, verified: {data_url}; picture: {picture}"
            )
            console.print(lines[-1], soft_wrap=True)
    click.echo(f"\nMade in {time.monotonic() - started:.0f} s:")
    for line in lines:
        click.echo(f"  {line}")
    click.echo("Try next:")
    click.echo(f"  genworker info {child_url(out, 'gan-samples')}")
    click.echo(f"  genworker verify {child_url(out, 'gan-samples')} --resample 3")
    click.echo(
        f"  genworker generate {child_url(out, 'gan', 'bundle')} --out {child_url(out, 'bags')} --num-samples 5000 --labels 8"
    )
