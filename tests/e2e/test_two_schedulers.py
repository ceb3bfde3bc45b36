"""Two schedulers that do not know of each other, each with a Ray cluster of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from genworker.bulk.manifest import published
from genworker.reading import verify
from genworker.stores import open_store
from tests.datasets import published_digests, stored_shards
from tests.processes import run, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import Program

# Long enough for two clusters that start seconds apart to meet, on fast machines too.
NUM_SAMPLES, PER_SHARD, NUM_SHARDS = 71_800, 1_200, 60


@pytest.mark.slow
def test_two_schedulers_at_once_make_each_date_once(tiny_bundle: str, tmp_path: Path) -> None:
    """Two drivers with a cluster each backfill the same two dates: both succeed, and each dataset is whole.

    A shard that both have made is work for nothing, never a second copy; the count is printed. A third run of the same dates
    makes nothing.
    """
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"bundle: {tiny_bundle}\nout: {tmp_path}/runs/dt={{{{ date }}}}\nseed: \"{{{{ date.strftime('%Y%m%d') }}}}\"\n"
        f"num_samples: {NUM_SAMPLES}\nsamples_per_shard: {PER_SHARD}\nactors: 1\n"
    )
    command = ["genworker", "backfill", str(spec), "--from", "2026-11-22", "--to", "2026-11-23"]
    command.append("--json")
    days = [f"{tmp_path}/runs/dt=2026-11-{day}" for day in (22, 23)]
    with running(command, tmp_path / "a", {}) as first, running(command, tmp_path / "b", {}) as second:
        for program in (first, second):
            assert program.wait() == 0, program.stdout + program.stderr
    told = [[made["summary"] for made in runs_of(program) if made["summary"]] for program in (first, second)]
    made = [sum(summary["made"]["shards"] for summary in summaries) for summaries in told]
    wasted = sum(summary["attempts"]["duplicate"] for summaries in told for summary in summaries)
    print(  # noqa: T201 - the figures are asked for
        f"2 schedulers over 2 dates: 2 datasets, {2 * NUM_SHARDS} shards, made {made[0]} + {made[1]}, {wasted} in vain"
    )
    assert min(made) > 0, "the two never met, so this shows nothing"
    assert wasted < 2 * NUM_SHARDS  # what two drivers that never meet would waste
    for out, seed in zip(days, (20261122, 20261123), strict=True):
        assert verify(out) == []
        manifest = published(open_store(out))
        assert manifest is not None
        assert (manifest.plan.seed, len(manifest.shards)) == (seed, NUM_SHARDS)
        assert len(stored_shards(out)) == NUM_SHARDS
    digests = [published_digests(out) for out in days]
    replay = run(command, tmp_path, {})
    assert [(again["state"], again["summary"]) for again in runs_of(replay)] == [("published", None)] * 2
    assert [published_digests(out) for out in days] == digests


def runs_of(program: Program) -> list[dict[str, Any]]:
    """What a backfill said of its runs."""
    found: list[dict[str, Any]] = json.loads(program.stdout)["runs"]
    return found
