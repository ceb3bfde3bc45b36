"""genworker submit."""

from __future__ import annotations

from pathlib import Path

import click

from genworker.cli.options import pairs


class _SpecFirst(click.Command):
    """Takes its options also behind its first word when that is a spec; words behind ``--`` are for the job."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the spec behind the options, where `click` wants it."""
        from genworker.submit.request import COMMANDS

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            end = args.index("--") if "--" in args else len(args)
            args = [*args[1:end], args[0], *args[end + 1 :]]
        return super().parse_args(ctx, args)


@click.command(cls=_SpecFirst, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--address", required=True, envvar="RAY_DASHBOARD_ADDRESS", metavar="URL", help="http://HOST:8265.")
@click.option("--run-id", default="", help="Tells runs of one command apart, for example a date.")
@click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to send along. Default: what the cluster's image has.",
)
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    callback=pairs,
    help="Of the job's environment; no secrets.",
)
@click.option(
    "--runtime-env",
    "environment",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Runtime environment of Ray (pip, image_uri, excludes, ...): a YAML or JSON file.",
)
@click.option("--driver-cpus", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: on the head.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate authority of an https address.",
)
@click.option("--detach", is_flag=True, help="Return once it is submitted.")
@click.argument("command", metavar="COMMAND|SPEC")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    *,
    address: str,
    run_id: str,
    working_dir: Path | None,
    variables: dict[str, str],
    environment: Path | None,
    driver_cpus: float,
    ca_file: Path | None,
    detach: bool,
    command: str,
    arguments: tuple[str, ...],
) -> None:
    """Run genworker COMMAND (train, generate, backfill, evaluate) with its ARGUMENTS as a job of the Ray cluster at --address.

    Of a SPEC, a file or a shipped one, the command is known, and options may follow it: submit SPEC --address URL -- ARGUMENTS.
    --run-id fills in {{ run_id }} there, and {{ date }} when it is a date.

    What it prints is followed, and its exit code is returned. The job's id follows from the command, the content of its
    spec and --run-id: the same submit again attaches to the job, says that it is done, or, where it failed, goes on.
    Ctrl-C leaves the job running.
    """
    from genworker.cli.display import console
    from genworker.submit.jobs import Cluster, read_environment
    from genworker.submit.request import Request, call_of

    command, words = call_of(command, arguments, run_id)
    request = Request(
        command,
        words,
        run_id,
        working_dir,
        variables,
        driver_cpus,
        read_environment(environment) if environment else {},
    )
    request.check()
    cluster = Cluster(address, ca_file)
    job_id, status = cluster.submit(request)
    if status is None:
        console.print(f"submitted: {job_id}", soft_wrap=True)
    elif status.is_terminal():
        console.print(f"done:      {job_id} has succeeded already", soft_wrap=True)
        return
    else:
        console.print(f"attached:  {job_id} is {status.lower()}", soft_wrap=True)
    if detach:
        return
    try:
        code = cluster.follow(job_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        console.print(
            f"\nThe job goes on. Submit the same again to follow it; stop it with: "
            f"ray job stop --address {address} {job_id}",
            soft_wrap=True,
        )
        raise SystemExit(130) from None
    raise SystemExit(code)
