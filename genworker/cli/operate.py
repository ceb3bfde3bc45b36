"""genworker status, gc, doctor: commands for whoever runs jobs."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import TYPE_CHECKING, Any

import click

from genworker.errors import JobError
from genworker.printable import in_a_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from genworker.doctor.base import Finding
    from genworker.reading.status import Status
    from genworker.stores.base import Store

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STATE_STYLES = {
    "published": "green",
    "running": "blue",
    "stopped": "yellow",
    "failed": "red",
    "not started": "yellow",
    "being removed": "red",
}
_VERDICT_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Duration(click.ParamType[float]):
    """A number with a unit: 90s, 15m, 24h, 7d. Gives seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse ``value``."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration: write a number and s, m, h or d, as in 24h", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("url")
@click.option("--watch", is_flag=True, help="Look again until the dataset is published or its job has failed.")
@click.option("--every", type=Duration(), default="5s", show_default=True, help="How often to look.")
@_json_option
def status(url: str, watch: bool, every: float, as_json: bool) -> None:
    """Say how far the job at URL is, from storage alone: no cluster is asked.

    It works while the job runs, after it died, and after its cluster is gone. With --watch it also waits for a job that has
    yet to begin, and the exit code is 0 once the dataset is published, 1 when the job has failed, or has stopped after a
    failure.
    """
    from genworker.reading.status import status as look
    from genworker.stores import open_store

    store = open_store(url)
    if watch:
        _await_plan(store, every)
    while True:
        began = time.monotonic()
        seen = look(store)
        click.echo(json.dumps(dataclasses.asdict(seen)) if as_json else _describe(seen, one_line=watch))
        if not watch or seen.state == "published":
            return
        if seen.removal is not None:
            raise JobError(f"{url}: `{seen.removal}` is removing this dataset, or was stopped while it did")
        if seen.failure is not None:
            how = "failed" if seen.state == "failed" else "stopped, and its last failure was"
            raise JobError(f"{url}: the job {how}: {seen.failure}")
        # A listing of a million shards takes a while and costs requests: most of the time is spent waiting.
        time.sleep(max(every, 10 * (time.monotonic() - began)))


def _await_plan(store: Store, every: float) -> None:
    """Wait for a job's first object, which comes once its actors have been asked what they can do."""
    from genworker.bulk.commit import read_plan
    from genworker.bulk.plan import PLAN_KEY

    told = False
    while read_plan(store) is None:
        if not told:
            click.echo(f"waiting for a job: there is no {store.url}/{PLAN_KEY} yet", err=True)
        told = True
        time.sleep(every)


def _describe(seen: Status, *, one_line: bool) -> str:
    from genworker.cli.display import size
    from genworker.report.names import duration

    share = seen.samples_done / seen.num_samples
    rate = "" if seen.samples_per_second is None else f"{seen.samples_per_second:,.0f} samples/s"
    eta = "" if seen.eta_seconds is None else f"{duration(seen.eta_seconds)} to go"
    ago = "" if seen.last_write_seconds is None else f"last write {duration(seen.last_write_seconds)} ago"
    state = click.style(seen.state, fg=_STATE_STYLES[seen.state])
    shards = f"{seen.shards_done:,} of {seen.num_shards:,} shards"
    failures = f"{seen.num_failures:,} failure{'s' * (seen.num_failures > 1)}" if seen.num_failures else ""
    if one_line:
        return "  ".join(filter(None, [state, f"{share:.1%}", shards, rate, eta, ago, failures]))
    facts = {
        "state": state + (f", {ago}" if ago and seen.state != "published" else ""),
        "plan": seen.plan_id,
        "shards": f"{shards} ({seen.shards_missing:,} missing), {size(seen.bytes_done)}",
        "samples": f"{seen.samples_done:,} of {seen.num_samples:,} ({share:.1%})",
        "rate": ", ".join(filter(None, [rate, eta])),
        "foreign": f"{seen.num_foreign} objects below data/ that are not the job's" if seen.num_foreign else "",
        "failed": failures + (f", the last one: {printable(seen.failure)}" if seen.failure else ""),
        "next": _next(seen),
    }
    return "\n".join(f"{name:<8} {text}" for name, text in facts.items() if text)


def _next(seen: Status) -> str:
    if seen.state == "published":
        return f"genworker verify {seen.url}"
    if seen.state == "running":
        return f"genworker status {seen.url} --watch"
    if seen.removal is not None:
        return f"let `{seen.removal}` end, or run it again"
    return "run the same `genworker generate` command again to go on; only what is missing is made"


@click.command()
@click.argument("url")
@click.option("--older-than", type=Duration(), default="24h", show_default=True, help="Leave what is younger.")
@click.option("--unfinished", is_flag=True, help="Give up a job that was never published: remove all of it.")
@click.option("--delete", is_flag=True, help="Remove it. Without this flag, only list it.")
@_json_option
def gc(url: str, older_than: float, unfinished: bool, delete: bool, as_json: bool) -> None:
    """List what is no longer needed below the dataset at URL, and with --delete remove it.

    Receipts and failures of a published dataset, left-over probes; with --unfinished a whole job that was given up.
    Objects that genworker did not make are never touched.
    """
    from genworker.bulk.gc import find_garbage, give_up, remove
    from genworker.cli.display import size
    from genworker.stores import open_store

    store = open_store(url)
    if unfinished and delete:
        garbage = give_up(store, older_than_seconds=older_than)
        removed = len(garbage)
    else:
        garbage = find_garbage(store, older_than_seconds=older_than, unfinished=unfinished)
        removed = remove(store, garbage) if delete else 0
    num_bytes = sum(item.size for item in garbage)
    if as_json:
        items = [dataclasses.asdict(item) for item in garbage]
        click.echo(json.dumps({"url": url, "removed": removed, "num_bytes": num_bytes, "garbage": items}, indent=2))
        return
    for item in garbage:
        click.echo(f"{in_a_line(item.key)}  {size(item.size)}  {item.reason}")
    if delete:
        click.echo(f"removed: {removed:,} objects, {size(num_bytes)}")
    else:
        click.echo(
            f"found:   {len(garbage):,} objects, {size(num_bytes)}" + ("; remove them with --delete" if garbage else "")
        )


@click.command()
@click.argument("url", required=False)
@_json_option
def doctor(url: str | None, as_json: bool) -> None:
    """Check this machine, the Ray cluster that would be used, and with URL the store there. Each line says the fix.

    Exit code 1 when something would stop a job.
    """
    from genworker.doctor.cluster import check_cluster
    from genworker.doctor.machine import check_machine
    from genworker.doctor.storage import check_store
    from genworker.stores import open_store

    parts: list[Iterable[Finding]] = [check_machine(), check_cluster()]
    if url is not None:
        parts.append(check_store(open_store(url)))
    findings: list[Finding] = []
    for part in parts:
        for finding in part:
            findings.append(finding)
            if not as_json:
                verdict = click.style(f"{finding.verdict:<4}", fg=_VERDICT_STYLES[finding.verdict])
                click.echo(f"{verdict}  {finding.name:<16} {finding.seen}")
                if finding.fix:
                    click.echo(f"      {'':<16} -> {finding.fix}")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    raise SystemExit(any(finding.verdict == "fail" for finding in findings))
