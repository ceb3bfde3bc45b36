"""Two schedulers that do not know of each other, each with a Ray cluster of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from genworker.bulk import commit
from genworker.reading import verify
from genworker.stores import open_store
from tests.datasets import stored_shards
from tests.processes import running

if TYPE_CHECKING:
    from pathlib import Path

NUM_SAMPLES, PER_SHARD, NUM_SHARDS = 2_900, 150, 20


@pytest.mark.slow
def test_two_schedulers_at_once_make_each_date_once(tiny_bundle: str, tmp_path: Path) -> None:
    """Two drivers with a cluster each backfill the same two dates: both succeed, and each dataset is whole."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"bundle: {tiny_bundle}\nout: {tmp_path}/runs/dt={{{{ date }}}}\nseed: \"{{{{ date.strftime('%Y%m%d') }}}}\"\n"
        f"num_samples: {NUM_SAMPLES}\nsamples_per_shard: {PER_SHARD}\nactors: 1\n"
    )
    command = ["genworker", "backfill", str(spec), "--from", "2026-11-22", "--to", "2026-11-23"]
    with running(command, tmp_path / "a", {}) as first, running(command, tmp_path / "b", {}) as second:
        for program in (first, second):
            assert program.wait() == 0, program.stdout + program.stderr
    for day, seed in (("2026-11-22", 20261122), ("2026-11-23", 20261123)):
        out = f"{tmp_path}/runs/dt={day}"
        assert verify(out) == []
        manifest = commit.published(open_store(out))
        assert manifest is not None
        assert (manifest.plan.seed, len(manifest.shards)) == (seed, NUM_SHARDS)
        assert len(stored_shards(out)) == NUM_SHARDS
