"""genworker train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from genworker.cli.options import LINEAGE

if TYPE_CHECKING:
    from genworker.training.spec import TrainSpec


@click.command()
@click.argument("spec")
@click.option("--out", required=True, metavar="URL", help="Where the run lives: checkpoints, metrics.jsonl, bundle.")
@click.option("--workers", type=click.IntRange(min=1), help="Data-parallel workers; overrides resources.workers.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. training.images=50000."
)
@LINEAGE
@click.option("--dry-run", is_flag=True, help="Print the resolved spec as YAML, and the size of the run, and stop.")
def train(
    *, spec: str, out: str, workers: int | None, overrides: tuple[str, ...], lineage: str | None, dry_run: bool
) -> None:
    """Train SPEC (a YAML file, or a shipped spec by name) into the run at --out.

    Run the same command again to resume; a finished run is left as it is.
    """
    import yaml

    from genworker.config import load_spec
    from genworker.training.spec import TrainSpec

    resolved = load_spec(TrainSpec, spec, overrides, {"resources.workers": workers})
    if dry_run:
        click.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)
        click.echo(f"train: {_size_of(resolved)}", err=True)
        return

    from genworker.cli.live import run_training

    title = f"train {resolved.family.name}"
    bundle_url = run_training(resolved, out, title, name=Path(spec).stem, lineage=lineage)
    click.echo(f"bundle: {bundle_url}")
    click.echo(f"next:   genworker generate {bundle_url} --out URL --num-samples 100000")


def _size_of(spec: TrainSpec) -> str:
    """What a run will be, in a line; the networks only where the data can be opened from here, whose remarks are told."""
    from genworker.cli.display import tell_remarks
    from genworker.errors import SourceError, StoreError
    from genworker.sources import open_source
    from genworker.training import preflight

    try:
        source = open_source(spec.data)
    except (SourceError, StoreError) as err:
        networks = f"parameters are not known here ({err})"
    else:
        tell_remarks("train", source.remarks)
        preflight.check(spec, source)
        networks = preflight.size_of_networks(spec, source.schema)
    return f"{preflight.size_of_run(spec)}; {networks}"
