"""The command line against real signals: whatever ends a driver, the same command again ends in the same dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genworker.bulk import commit, ledger
from genworker.bulk.plan import MANIFEST_KEY
from genworker.reading import verify
from genworker.stores import open_store
from tests.datasets import all_samples, published_digests, stored_shards
from tests.processes import running

if TYPE_CHECKING:
    from tests.processes import Program

NUM_SAMPLES, NUM_SHARDS = 18_000, 120


def command(bundle: str, out: Path) -> list[str]:
    """A job of many small shards, so that there is a middle to be hit in."""
    flags = {"num-samples": NUM_SAMPLES, "samples-per-shard": NUM_SAMPLES // NUM_SHARDS, "seed": 5, "actors": 2}
    return ["genworker", "generate", bundle, "--out", str(out), *(f"--{name}={value}" for name, value in flags.items())]


def is_under_way(out: Path) -> bool:
    """Whether the first shards are there."""
    return (out / "data").is_dir() and len(stored_shards(str(out))) >= 3


def check_left_without_credentials(program: Program) -> None:
    """A local cluster's token is never written below HOME, where later commands would pick it up."""
    assert [path for path in program.home.rglob("*") if "token" in path.name] == []


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the dataset as a run that nothing disturbs makes it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    # With this mode and no token Ray would write one; other runs of this file set nothing.
    with running(command(tiny_bundle, folder / "out"), folder, {"RAY_AUTH_MODE": "token"}) as program:
        assert program.wait() == 0, program.stderr
    assert f"published: {folder / 'out'}, 18,000 samples in 120 shards" in program.stdout
    check_left_without_credentials(program)
    return published_digests(str(folder / "out"))


@pytest.mark.slow
def test_a_killed_driver_loses_and_repeats_nothing(
    tiny_bundle: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """After kill -9 in mid-job the next run makes the rest: the same bytes, and every sample once."""
    out = tmp_path / "out"
    with running(command(tiny_bundle, out), tmp_path) as first:
        first.wait_until(lambda: is_under_way(out))
        assert first.kill() == -9
    kept = stored_shards(str(out))
    assert 3 <= len(kept) < NUM_SHARDS
    assert not (out / MANIFEST_KEY).exists()
    times = {key: (out / key).stat().st_mtime_ns for key in kept}

    with running(command(tiny_bundle, out), tmp_path) as second:
        assert second.wait() == 0, second.stderr
    made = (NUM_SHARDS - len(kept)) * NUM_SAMPLES // NUM_SHARDS
    assert f"made:      {made:,} samples" in second.stdout
    assert {key: (out / key).stat().st_mtime_ns for key in kept} == times
    assert published_digests(str(out)) == undisturbed
    assert verify(str(out)) == []
    indices, _, _ = all_samples(str(out))
    assert indices.tolist() == list(range(NUM_SAMPLES))


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_can_be_resumed(tiny_bundle: str, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C ends in exit code 130, one sentence and no traceback; the same command goes on from there."""
    out = tmp_path / "out"
    with running(command(tiny_bundle, out), tmp_path) as first:
        first.wait_until(lambda: is_under_way(out))
        assert first.interrupt() == 130
    check_left_without_credentials(first)
    assert "Stopped. What was made stays; run the same command again to go on." in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    assert not (out / MANIFEST_KEY).exists()
    kept = len(stored_shards(str(out)))
    assert 3 <= kept < NUM_SHARDS

    with running(command(tiny_bundle, out), tmp_path) as second:
        assert second.wait() == 0, second.stderr
    assert f"made:      {(NUM_SHARDS - kept) * NUM_SAMPLES // NUM_SHARDS:,} samples" in second.stdout
    assert published_digests(str(out)) == undisturbed


@pytest.mark.slow
def test_sigterm_drains_and_can_be_resumed(tiny_bundle: str, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM lets running shards end, keeps their receipts, says how to go on, and exits with 143."""
    out, events = tmp_path / "out", tmp_path / "events.jsonl"
    with running([*command(tiny_bundle, out), "--lineage", str(events)], tmp_path) as first:
        first.wait_until(lambda: is_under_way(out))
        first.process.terminate()
        assert first.wait() == 143
    assert "stopping: no new shards, up to 20 s for" in first.stderr
    assert "Stopped. What was made stays; run the same command again to go on." in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    store = open_store(str(out))
    plan = commit.read_plan(store)
    assert plan is not None
    # Nothing was cut off: each shard that is there has its receipt.
    assert {plan.shard_key(index) for index in ledger.read(store, plan)} == set(stored_shards(str(out)))
    with running([*command(tiny_bundle, out), "--lineage", str(events), "--json"], tmp_path) as second:
        assert second.wait() == 0, second.stderr
    summary = json.loads(second.stdout)
    assert summary["shards"] == NUM_SHARDS
    assert 0 < summary["made"]["shards"] < NUM_SHARDS
    assert summary["stages"]["forward"] > 0
    lines = [json.loads(line) for line in second.stderr.splitlines() if line.startswith("{")]
    assert {line["plan_id"] for line in lines if line["event"] == "progress"} == {plan.plan_id}
    assert lines[-1]["shards_done"] == lines[-1]["num_shards"] == NUM_SHARDS
    assert published_digests(str(out)) == undisturbed
    told = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert [event["eventType"] for event in told] == ["START", "ABORT", "START", "COMPLETE"]
    facets = [event["run"]["facets"]["genworker_run"] for event in told]
    assert {facet["planId"] for facet in facets[1::2]} == {plan.plan_id}
    assert len({facet["resumeId"] for facet in facets}) == 1
    assert told[-1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == NUM_SAMPLES
