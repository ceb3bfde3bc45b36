"""A sample of the chaos suite: one round of every scenario. `python -m tests.benchmarks.chaos` plays hundreds."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genworker.bulk.plan import SUCCESS_KEY
from tests.chaos.ground import Ground, Job, Judgement, ground_in
from tests.chaos.jobs import Ending
from tests.chaos.scenarios import NEED_MOUNT, SCENARIOS, Outcome, can_mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import S3Server


@pytest.fixture(scope="module")
def ground(moto: S3Server, rclone: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Servers, a plan, and what an undisturbed run of it gives."""
    with ground_in(tmp_path_factory.mktemp("chaos"), moto, rclone) as ground:
        yield ground


@pytest.fixture(scope="module")
def rounds(ground: Ground) -> Iterator[dict[str, Future[Outcome]]]:
    """One round of every scenario that this machine can play, several at a time, because they wait more than they work."""
    names = set(SCENARIOS) if can_mount(str(ground.folder)) else set(SCENARIOS) - NEED_MOUNT
    with ThreadPoolExecutor(5) as threads:
        yield {name: threads.submit(SCENARIOS[name], ground, random.Random(f"1/{name}")) for name in sorted(names)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_and_nothing_is_there_twice(rounds: dict[str, Future[Outcome]], name: str) -> None:
    """The round ends with the undisturbed run's bytes, at once or after an error that says what to do and another run."""
    if name not in rounds:
        pytest.skip("no file system can be mounted here")
    outcome = rounds[name].result()
    assert outcome.losses == outcome.duplicates == 0
    assert outcome.published or outcome.resumed


def test_the_judge_can_find_fault(ground: Ground) -> None:
    """A lost shard, a changed one and a foreign one are seen, and a dataset without _SUCCESS is not published."""
    place = ground.new_place("folder")
    assert ground.judge(place).lost == tuple(ground.reference)
    assert Job(ground, place).wait() == Ending()
    assert ground.judge(place) == Judgement(True, (), ())
    gone, changed, *_ = sorted(Path(place.url, "data").iterdir())
    gone.rename(gone.with_name("foreign.parquet"))
    changed.write_bytes(changed.read_bytes()[:-1])
    Path(place.url, SUCCESS_KEY).unlink()
    lost = (SUCCESS_KEY, f"data/{gone.name}", f"data/{changed.name}")
    assert ground.judge(place) == Judgement(False, lost, ("data/foreign.parquet",))
