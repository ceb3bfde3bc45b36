"""genworker generate."""

from __future__ import annotations

import datetime
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from genworker import codecs, formats
from genworker.cli.options import DATE, LINEAGE, filled_pairs
from genworker.errors import UsageError

if TYPE_CHECKING:
    from genworker.bulk.request import GenerateSpec


def _was_typed(context: click.Context, key: str) -> bool:
    return context.get_parameter_source(key) is ParameterSource.COMMANDLINE


@click.command()
@click.argument("bundle", required=False)
@click.option("--out", metavar="URL", help="The dataset to make.")
@click.option("--num-samples", type=click.IntRange(min=1), help="Samples in all.")
@click.option("--spec", "spec_file", metavar="FILE", help="A YAML file, or a shipped spec, with all that is not given.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of --spec.")
@click.option("--date", type=DATE, help="For {{ date }} in the spec's out and seed.")
@click.option("--run-id", metavar="NAME", help="For {{ run_id }} there.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of latents and labels.")
@click.option("--samples-per-shard", type=click.IntRange(min=1), help="Default: by size, at least 16 shards.")
@click.option("--labels", default="balanced", show_default=True, help="balanced, uniform, or one class number.")
@click.option("--split", type=click.Choice(["train", "test", "validation"]), default="train", show_default=True)
@click.option(
    "--format", "format", default="parquet", show_default=True, help=f"Of shards: {', '.join(formats.names())}."
)
@click.option(
    "--codec",
    default="png",
    show_default=True,
    help=f"Of images: {', '.join(codecs.names())}; with a quality of 1 to 100 as in jpeg:85 where it is lossy.",
)
@click.option(
    "--columns",
    metavar="LIST",
    help="Of label, latents, score (the discriminator's), with commas. Default: label where the model has classes.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32"]),
    default="auto",
    show_default=True,
    help="auto: bfloat16 if fast.",
)
@click.option("--micro-batch", type=click.IntRange(1, 65536), help="Samples per evaluation. Default: measured, or 128.")
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    show_default=True,
    help="Long jobs: measure for seconds what is fastest here.",
)
@click.option(
    "--actors",
    metavar="N|MIN:MAX",
    help="A number, or a range that follows the cluster. Default: as many as the cluster holds.",
)
@click.option("--use-gpu", is_flag=True, help="One GPU per actor, or --gpus-per-actor.")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Below 1, actors share a GPU.",
)
@click.option(
    "--cpus-per-actor",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Beside a GPU they encode.",
)
@click.option(
    "--node-label",
    "node_labels",
    multiple=True,
    metavar="NAME=VALUE",
    callback=filled_pairs,
    help="Only on nodes with this Ray label.",
)
@click.option("--max-attempts", type=click.IntRange(min=1), default=3, show_default=True, help="Per shard.")
@click.option(
    "--wait-timeout",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds to wait for a cluster without enough room; a local one cannot grow.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    help="Seconds that running shards have to end after SIGTERM or Ctrl-C.",
)
@click.option(
    "--price-per-hour", type=click.FloatRange(min=0), help="Of one GPU, or of one CPU: estimate and report the cost."
)
@LINEAGE
@click.option("--json", "as_json", is_flag=True, help="Print a summary of the run as JSON.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, not calibrated, as JSON, with a price its cost; then stop.",
)
@click.pass_context
def generate(
    context: click.Context,
    /,
    *,
    spec_file: str | None,
    overrides: tuple[str, ...],
    date: datetime.datetime | None,
    run_id: str | None,
    dry_run: bool,
    as_json: bool,
    lineage: str | None,
    **flags: object,
) -> None:
    """Write samples of BUNDLE as shards to --out, and publish them once all are there.

    With --spec, the file says what the command line does not.
    Run the same command again to go on after anything that stopped it: only what is missing is made.
    """
    from genworker.bulk.request import GenerateSpec

    if spec_file is None:
        if overrides or date or run_id:
            raise UsageError("--set, --date and --run-id fill in a spec: name one with --spec")
        for parameter in context.command.params:
            if parameter.name in {"bundle", "out", "num_samples"} and flags[parameter.name] is None:
                raise click.MissingParameter(ctx=context, param=parameter)
        spec = GenerateSpec.parse(flags, origin="generate")
    else:
        from genworker.bulk.schedule import load_run

        typed = {key: value for key, value in flags.items() if _was_typed(context, key)}
        spec = load_run(spec_file, overrides, typed, date=date.date() if date else None, run_id=run_id)
    if dry_run:
        _show_plan(spec)
        return

    from genworker.cli.display import size
    from genworker.cli.live import run_generation

    result = run_generation(
        spec,
        "generate",
        name=None if spec_file is None else Path(spec_file).stem,
        date=date.date() if date else None,
        run_id=run_id,
        lineage=lineage,
    )
    if as_json:
        click.echo(json.dumps(result.summary, indent=2))
        return
    manifest = result.manifest
    click.echo(
        f"published: {spec.out}, {manifest.num_samples:,} samples in {len(manifest.shards)} shards, {size(manifest.num_bytes)}"
    )
    if result.samples_made:
        rate = result.samples_made / result.making_seconds
        click.echo(
            f"made:      {result.samples_made:,} samples in {result.making_seconds:.1f} s, {rate:,.0f} samples/s"
        )
        if (cost := result.summary["cost"]["total"]) is not None:
            per_million = result.summary["cost"]["per_million_samples"]
            click.echo(f"cost:      {cost:.4f}, {per_million:.4f} per million samples")
    else:
        click.echo("made:      nothing, it was complete")
    click.echo(f"next:      genworker verify {shlex.quote(spec.out)} --resample 3")


def _show_plan(spec: GenerateSpec) -> None:
    from genworker.bulk.request import resolve
    from genworker.cli.display import console
    from genworker.sampling.grid import wasteful_size

    plan, settled = resolve(spec)
    if not settled:
        console.print(
            "generate: a long job measures first what is fastest on its machines, and its plan then holds that: other "
            "numerics and another plan_id than here; with --no-calibrate the plan is this one",
            soft_wrap=True,
        )
    if waste := wasteful_size(plan):
        console.print(f"generate: {waste}", soft_wrap=True)
    text = {"plan_id": plan.plan_id, "num_shards": plan.num_shards, "plan": plan.model_dump(mode="json")}
    if spec.price_per_hour is not None:
        from genworker.bulk.summary import rehearse

        text["one_actor_like_this_machine"] = rehearse(spec)
    click.echo(json.dumps(text, indent=2))
