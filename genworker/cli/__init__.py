"""The command line: the only place that prints. Heavy libraries are imported inside commands, so that --help is quick."""

from __future__ import annotations

import contextlib
import signal
import sys

# Code that was sent to a cluster is run by the cluster's Python; older ones cannot parse what follows.
if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses there, a job does not
    raise SystemExit(f"genworker needs Python 3.11 or newer, this is {sys.version.split()[0]}: use another image")

import click

from genworker import __version__
from genworker.cli.dataset import info, sheet, show, verify
from genworker.cli.demo import demo
from genworker.cli.evaluate import evaluate
from genworker.cli.generate import generate
from genworker.cli.operate import doctor, gc, status
from genworker.cli.runs import report, runs
from genworker.cli.schedule import backfill, catalog, retain
from genworker.cli.submit import submit
from genworker.cli.train import train
from genworker.errors import GenworkerError
from genworker.printable import printable


class _Failure(click.ClickException):
    """A `GenworkerError` on its way to the terminal: its message, its exit code, no traceback."""

    def __init__(self, error: GenworkerError) -> None:
        super().__init__(printable(str(error)))
        vars(self)["exit_code"] = error.exit_code  # click declares a class variable and reads it from the instance


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill: what Ctrl-C does, with another exit code."""


def _on_sigterm(_signum: int, _frame: object) -> None:
    raise _Terminated


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; failures end in one message, Ctrl-C in exit code 130, SIGTERM in 143."""
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
            signal.signal(signal.SIGTERM, _on_sigterm)
        try:
            return super().invoke(ctx)
        except GenworkerError as err:
            raise _Failure(err) from err
        except (KeyboardInterrupt, click.Abort) as err:
            click.echo("\nStopped. What was made stays; run the same command again to go on.", err=True)
            ctx.exit(143 if isinstance(err, _Terminated) else 130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="genworker")
def cli() -> None:
    """Train a GAN or a VAE on a Ray cluster, turn it into millions of stored samples, read them anywhere.

    A URL is a folder or s3://bucket/prefix. S3 takes endpoint, region, CA and credentials from the usual AWS variables.
    With RAY_ADDRESS set (as inside `ray job submit`) the work runs on that cluster, else on this machine.
    """


for command in (
    demo,
    train,
    runs,
    report,
    evaluate,
    generate,
    status,
    verify,
    info,
    show,
    sheet,
    submit,
    gc,
    doctor,
    backfill,
    catalog,
    retain,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    cli()
