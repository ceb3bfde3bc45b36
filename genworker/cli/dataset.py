"""genworker verify, info, show, sheet: commands that look at what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genworker.errors import UsageError
from genworker.printable import in_a_line, printable

if TYPE_CHECKING:
    from PIL.Image import Image

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("url")
@click.option(
    "--resample", type=click.IntRange(min=0), default=0, metavar="K", help="Also remake K random shards and compare."
)
@click.option("--use-gpu", is_flag=True, help="Remake them on the GPU.")
@click.option(
    "--sizes-only", is_flag=True, help="Read no shard: compare what the store lists, keys and sizes, with the manifest."
)
@_json_option
def verify(url: str, resample: int, use_gpu: bool, sizes_only: bool, as_json: bool) -> None:
    """Check every shard of the dataset at URL against its manifest (size, SHA-256, rows, indices, labels), and its bundle.

    Exit code 0 when whole and right, 1 with one line per fault.
    """
    from genworker.bulk.manifest import read_manifest
    from genworker.cli.display import Display
    from genworker.reading.verify import verify as check
    from genworker.stores import open_store

    display = Display("verify", 0, "shards")
    with display.running():
        faults = [str(fault) for fault in check(url, sizes_only=sizes_only, on_shard=display.on_count)]
    if not faults and resample:
        from genworker.bulk.shard import resample as remake
        from genworker.device import pick_device

        store = open_store(url)
        manifest = read_manifest(store)
        count = min(resample, len(manifest.shards))
        display = Display("resample", count, "shards")
        with display.running():
            faults = remake(store, manifest, count, pick_device(use_gpu=use_gpu), display.on_count)
    if as_json:
        click.echo(json.dumps({"url": url, "ok": not faults, "resampled": resample, "faults": faults}, indent=2))
    else:
        for fault in faults:
            click.echo(printable(fault))
        if not faults:
            manifest = read_manifest(open_store(url))
            remade = f", {min(resample, len(manifest.shards))} of them remade with equal bytes" if resample else ""
            by = ", by the sizes that the store lists" if sizes_only else ""
            click.echo(f"ok: {manifest.num_samples:,} samples in {len(manifest.shards)} shards{by}{remade}")
    raise SystemExit(1 if faults else 0)


@click.command()
@click.argument("url_or_bundle")
@_json_option
def info(url_or_bundle: str, as_json: bool) -> None:
    """Say what lies at URL_OR_BUNDLE: a dataset, a training run or a bundle."""
    from genworker.cli.look import describe

    facts = describe(url_or_bundle)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {in_a_line(_plain(value))}")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


@click.command()
@click.argument("url_or_bundle")
@click.option("--index", required=True, type=click.IntRange(min=0), help="Which sample.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="PNG file to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For a bundle.")
@click.option("--regenerate", is_flag=True, help="Remake the sample of a dataset instead of reading it.")
@click.option("--use-gpu", is_flag=True, help="Make it on the GPU, as a dataset that was made on GPUs needs.")
def show(*, url_or_bundle: str, index: int, out: Path, seed: int, regenerate: bool, use_gpu: bool) -> None:
    """Write sample --index of a dataset, or of the samples that a bundle would generate, as a PNG."""
    from PIL import Image

    from genworker.cli.look import one_sample

    batch = one_sample(url_or_bundle, index, seed, regenerate=regenerate, use_gpu=use_gpu)
    pixels = batch.pixels[0]
    _save(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), out)
    label = "" if batch.labels is None else f", class {int(batch.labels[0])}"
    click.echo(f"{out}: sample {index}{label}, {pixels.shape[1]}x{pixels.shape[0]}")


@click.command()
@click.argument("url_or_bundle")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="PNG file to write.")
@click.option(
    "--per-class", type=click.IntRange(min=1, max=64), default=8, show_default=True, help="Samples of each class."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For a bundle.")
@click.option("--real", "real_spec", metavar="SPEC", help="Training spec whose real images to put beside them.")
def sheet(url_or_bundle: str, out: Path, per_class: int, seed: int, real_spec: str | None) -> None:
    """Write a contact sheet: some samples of every class of a dataset or a bundle."""
    from genworker.cli.look import make_sheet

    image = make_sheet(url_or_bundle, per_class, seed, real_spec)
    _save(image, out)
    click.echo(f"{out}: {image.width}x{image.height}")


def _save(image: Image, out: Path) -> None:
    try:
        image.save(out, format="PNG")
    except OSError as err:
        raise UsageError(
            f"--out {out}: cannot be written: {err.strerror or err}; name a file in a folder that exists"
        ) from err
