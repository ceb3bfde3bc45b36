"""genworker backfill, catalog, retain: commands for datasets that are made again and again."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genworker.cli.options import DATE, LINEAGE
from genworker.printable import in_a_line

if TYPE_CHECKING:
    from genworker.bulk.catalog import Published


@click.command()
@click.argument("spec")
@click.option("--from", "first", required=True, type=DATE, help="First date.")
@click.option("--to", "last", required=True, type=DATE, help="Last date, included.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of SPEC.")
@click.option("--run-id", metavar="NAME", help="For {{ run_id }} in the spec.")
@LINEAGE
@click.option("--dry-run", is_flag=True, help="List the runs, and whether they are there, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with a summary of each run that was made.")
def backfill(
    *,
    spec: str,
    first: datetime.datetime,
    last: datetime.datetime,
    overrides: tuple[str, ...],
    run_id: str | None,
    lineage: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the runs of SPEC that are missing between two dates, one after the other.

    SPEC is what `genworker generate --spec` takes. Runs that are published are left as they are.
    """
    from genworker.bulk.manifest import published
    from genworker.bulk.schedule import runs_between
    from genworker.stores import open_store

    runs = runs_between(spec, overrides, first.date(), last.date(), run_id)
    lines = []
    for date, run in runs:
        state, summary = "published", None
        if published(open_store(run.out)) is None:
            state = "missing"
        if state == "missing" and not dry_run:
            from genworker.cli.live import run_generation

            result = run_generation(
                run, f"generate {date}", name=Path(spec).stem, date=date, run_id=run_id, lineage=lineage
            )
            state, summary = "made" if result.samples_made else "published", result.summary
        lines.append({"date": str(date), "url": run.out, "state": state, "summary": summary})
        if not as_json:
            click.echo(f"{date}  {run.out}  {state}")
    if as_json:
        click.echo(json.dumps({"runs": lines}, indent=2))
        return
    sought = "missing" if dry_run else "made"
    click.echo(f"{sought}: {sum(line['state'] == sought for line in lines)} of {len(runs)} runs")


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def catalog(url: str, as_json: bool) -> None:
    """List the published datasets below URL: size, digest, model, quality and age of each.

    Quality is what the evaluation of exactly these weights says; a model without one shows its last training report instead.
    """
    from genworker.bulk.catalog import read_catalog
    from genworker.cli.display import size
    from genworker.report.names import duration
    from genworker.stores import open_store

    published, unfinished = read_catalog(open_store(url))
    now = time.time()
    if as_json:
        lines = [run.to_json() | {"age_seconds": round(now - run.published, 1)} for run in published]
        click.echo(json.dumps({"published": lines, "unfinished": unfinished}, indent=2))
        return
    for run in published:
        cells = [
            run.name or run.url,
            f"{run.num_samples:,} samples",
            f"{run.num_shards:,} shards",
            size(run.num_bytes),
            f"manifest {run.manifest_sha256[:12]}",
            f"{run.family or 'model'} {run.bundle_digest[:12]}",
            _quality(run),
            f"{duration(max(0.0, now - run.published))} ago",
        ]
        click.echo("  ".join(in_a_line(cell) for cell in cells))
    for name in unfinished:
        click.echo(f"{in_a_line(name or url)}  not finished; `genworker status` says more", err=True)
    click.echo(f"published: {len(published)} datasets, {size(sum(run.num_bytes for run in published))}")


def _quality(run: Published) -> str:
    """The numbers of the evaluation, and whose features they compare; without one, of training, which says so."""
    from genworker.report.names import headlines, number

    if run.evaluation is not None:
        made_with = {card.extractor: None for card in run.evaluation.cards.values() if card.extractor != "none"}
        features = f" (features of {', '.join(made_with)})" if made_with else ""
        return " ".join(f"{name} {number(value)}" for name, value in run.quality.items()) + features
    training = " ".join(f"{name} {value}" for name, value in headlines(run.training).items())
    return f"not evaluated (training: {training})" if training else "-"


@click.command()
@click.argument("url")
@click.option("--keep", required=True, type=click.IntRange(min=1), help="Datasets that stay, the newest.")
@click.option(
    "--by",
    type=click.Choice(["name", "age"]),
    default="name",
    show_default=True,
    help="Newest is last by name, as dates sort, or published last.",
)
@click.option("--delete", is_flag=True, help="Remove them; without it they are listed only.")
def retain(url: str, keep: int, by: str, delete: bool) -> None:
    """List all but the newest published datasets below URL, and with --delete remove them, the marker first.

    What genworker did not make stays, and is told. A removal that was stopped goes on with the next call. Datasets that are
    not finished are left to `genworker gc`. Exit code 1 when one cannot be removed.
    """
    from genworker.bulk.retention import find_old, remove_dataset
    from genworker.cli.display import size
    from genworker.stores import open_store

    store = open_store(url)
    old = find_old(store, keep, "age" if by == "age" else "name")
    for doomed in old:
        begun = "  its removal was begun" if doomed.begun else ""
        click.echo(f"{doomed.name}  {len(doomed.objects):,} objects  {size(doomed.num_bytes)}{begun}")
        if doomed.foreign:
            first = in_a_line(doomed.foreign[0].key)
            click.echo(f"  not genworker's, so left there: {len(doomed.foreign):,} objects, {first} first")
        if doomed.problem:
            click.echo(f"  cannot be removed: {in_a_line(doomed.problem)}")
        elif delete:
            remove_dataset(store, doomed)
    sound = [doomed for doomed in old if not doomed.problem]
    total = size(sum(doomed.num_bytes for doomed in sound))
    if delete:
        click.echo(f"removed: {len(sound)} datasets, {total}")
    else:
        click.echo(f"found:   {len(sound)} datasets, {total}" + ("; remove them with --delete" if sound else ""))
    raise SystemExit(int(len(sound) < len(old)))
