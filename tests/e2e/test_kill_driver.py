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


def stored_times(out: Path) -> dict[str, int]:
    """The shards that are there, and when each was written."""
    return {key: (out / key).stat().st_mtime_ns for key in stored_shards(str(out))}


def check_stopped(program: Program, out: Path) -> None:
    """One sentence says how to go on, and nothing looks finished."""
    assert "Stopped. What was made stays; run the same command again to go on." in program.stderr
    assert "Traceback" not in program.stdout + program.stderr
    assert not (out / MANIFEST_KEY).exists()


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
def test_whatever_ends_a_driver_nothing_is_lost_or_made_twice(
    tiny_bundle: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """SIGTERM, Ctrl-C and kill -9 in mid-job, one after the other: each run goes on where the last was, the fourth to the end.

    SIGTERM lets running shards end, keeps their receipts, and exits with 143; Ctrl-C exits with 130.
    """
    out, events = tmp_path / "out", tmp_path / "events.jsonl"
    words, told = command(tiny_bundle, out), ["--lineage", str(events)]
    kept: dict[str, int] = {}

    def goes_on() -> bool:
        return len(stored_shards(str(out))) >= len(kept) + 3

    with running([*words, *told], tmp_path) as terminated:
        terminated.wait_until(goes_on)
        terminated.process.terminate()
        assert terminated.wait() == 143
    assert "stopping: no new shards, up to 20 s for" in terminated.stderr
    check_stopped(terminated, out)
    store = open_store(str(out))
    plan = commit.read_plan(store)
    assert plan is not None
    kept = stored_times(out)
    # Nothing was cut off: each shard that is there has its receipt.
    assert {plan.shard_key(index) for index in ledger.read(store, plan)} == kept.keys()

    with running(words, tmp_path) as interrupted:
        interrupted.wait_until(goes_on)
        assert interrupted.interrupt() == 130
    check_stopped(interrupted, out)
    check_left_without_credentials(interrupted)
    assert kept.items() <= stored_times(out).items()
    kept = stored_times(out)

    with running(words, tmp_path) as killed:
        killed.wait_until(goes_on)
        assert killed.kill() == -9
    assert not (out / MANIFEST_KEY).exists()
    assert kept.items() <= stored_times(out).items()
    kept = stored_times(out)
    assert len(kept) < NUM_SHARDS

    with running([*words, *told, "--json"], tmp_path) as last:
        assert last.wait() == 0, last.stderr
    summary = json.loads(last.stdout)
    assert (summary["shards"], summary["made"]["shards"]) == (NUM_SHARDS, NUM_SHARDS - len(kept))
    assert summary["stages"]["forward"] > 0
    assert kept.items() <= stored_times(out).items()
    assert published_digests(str(out)) == undisturbed
    assert verify(str(out)) == []
    indices, _, _ = all_samples(str(out))
    assert indices.tolist() == list(range(NUM_SAMPLES))

    lines = [json.loads(line) for line in last.stderr.splitlines() if line.startswith("{")]
    assert {line["plan_id"] for line in lines if line["event"] == "progress"} == {plan.plan_id}
    assert lines[-1]["shards_done"] == lines[-1]["num_shards"] == NUM_SHARDS
    lineage = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert [event["eventType"] for event in lineage] == ["START", "ABORT", "START", "COMPLETE"]
    facets = [event["run"]["facets"]["genworker_run"] for event in lineage]
    assert {facet["planId"] for facet in facets[1::2]} == {plan.plan_id}
    assert len({facet["resumeId"] for facet in facets}) == 1
    assert lineage[-1]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == NUM_SAMPLES
