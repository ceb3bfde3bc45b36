"""The catalogue of published datasets, and the removal of old ones in an order that no reader can stumble over."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import genworker
from genworker.bulk.catalog import read_catalog
from genworker.bulk.plan import BUNDLE_PREFIX, MANIFEST_KEY, PLAN_KEY, REMOVING_KEY, SUCCESS_KEY
from genworker.bulk.removal import GC, NOTICES, check_kept
from genworker.bulk.retention import find_old, remove_dataset
from genworker.bundle import Lineage
from genworker.cli import cli
from genworker.errors import DatasetError, GenworkerError, PlanError
from genworker.metrics.cards import Measured
from genworker.stores import open_store
from tests.fakes import dataset, models
from tests.fakes.stores import Stopping

if TYPE_CHECKING:
    from pathlib import Path

DAYS = [f"dt=2026-11-{day:02d}" for day in (21, 22, 23, 24)]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A folder with four published datasets, the oldest published last, and one that is not finished."""
    for seed, day in enumerate(reversed(DAYS)):
        dataset.publish(f"{tmp_path}/{day}", dataset.make_plan(seed=seed, num_samples=20))
    dataset.publish(f"{tmp_path}/dt=2026-11-25", dataset.make_plan(num_samples=20), finish=False)
    return str(tmp_path)


def test_the_catalogue_lists_what_is_published(root: str) -> None:
    """Names in order, sizes and digests of the manifest; the unfinished one apart."""
    published, unfinished = read_catalog(open_store(root))
    assert [run.name for run in published] == DAYS
    assert unfinished == ["dt=2026-11-25"]
    for run in published:
        assert run.num_bytes == sum(info.size for info in open_store(run.url).list("data/"))
        assert (run.num_samples, run.num_shards) == (20, 2)
        assert genworker.open(run.url).manifest.plan_id == run.plan_id
    listed = CliRunner().invoke(cli, ["catalog", root, "--json"])
    assert [run["name"] for run in json.loads(listed.stdout)["published"]] == DAYS
    text = CliRunner().invoke(cli, ["catalog", root])
    assert "published: 4 datasets" in text.stdout
    assert published[0].manifest_sha256[:12] in text.stdout


def test_the_catalogue_calls_only_an_evaluation_quality(root: str) -> None:
    """Numbers of an evaluation of the model's weights, with its extractor; else the losses of training as what they are."""
    losses = Lineage(metrics={"elbo.kl": 2.5, "seconds": 9.0})
    names = {"extractor": "cnn-64", "label": "FD-cnn-64", "metric": "frechet", "split": "test", "image_size": "8x8x1"}
    shape = {"extractor_digest": "d" * 64, "reference": "r", "num_real": 20, "num_generated": 20, "dtype": "float32"}
    numbers = {"metrics": {"frechet": 7.5, "coverage": 0.75, "kid": None}, "floor": {"frechet": 1.5}}
    evaluation = Measured.of({"images_seen": 48, "cards": {"frechet": names | shape}, "seconds": 3.0, **numbers})
    for day, lineage in ((DAYS[0], losses), (DAYS[1], losses.model_copy(update={"evaluation": evaluation}))):
        models.bundle_of(lineage=lineage).save(open_store(f"{root}/{day}"), BUNDLE_PREFIX)
    found, _ = read_catalog(open_store(root))
    assert [run.quality for run in found] == [{}, {"frechet": 7.5, "coverage": 0.75}, {}, {}]
    assert [run.training for run in found] == [losses.metrics, losses.metrics, {}, {}]
    shown = json.loads(CliRunner().invoke(cli, ["catalog", root, "--json"]).stdout)["published"]
    assert [run["quality"] for run in shown] == [run.quality for run in found]
    assert [run["evaluation"] and run["evaluation"]["images_seen"] for run in shown] == [None, 48, None, None]
    assert shown[1]["evaluation"]["cards"]["frechet"]["label"] == "FD-cnn-64"
    lines = CliRunner().invoke(cli, ["catalog", root]).stdout.splitlines()
    assert "  not evaluated (training: KL 2.5)  " in lines[0]
    assert "  frechet 7.5 coverage 0.75 (features of cnn-64)  " in lines[1]
    assert "  -  " in lines[2]


def test_a_changed_manifest_is_not_listed_as_sound(root: str) -> None:
    store = open_store(f"{root}/{DAYS[0]}")
    text = store.get(MANIFEST_KEY)
    store.put(MANIFEST_KEY, text.replace(b'"num_samples":20', b'"num_samples":21'), overwrite=True)
    with pytest.raises(DatasetError, match="it was changed"):
        read_catalog(open_store(root))


def test_the_newest_stay(root: str) -> None:
    """By name dates decide, by age the time of publishing; without --delete nothing goes."""
    store = open_store(root)
    assert [doomed.name for doomed in find_old(store, 3)] == DAYS[:1]
    assert [doomed.name for doomed in find_old(store, 2)] == DAYS[:2]
    assert [doomed.name for doomed in find_old(store, 9)] == []
    assert [doomed.name for doomed in find_old(store, 3, "age")] == DAYS[3:]
    before = {info.key for info in store.list()}
    listed = CliRunner().invoke(cli, ["retain", root, "--keep", "1"])
    assert listed.exit_code == 0
    assert "remove them with --delete" in listed.stdout
    assert {info.key for info in store.list()} == before
    removed = CliRunner().invoke(cli, ["retain", root, "--keep", "1", "--delete"])
    assert removed.exit_code == 0
    assert "removed: 3 datasets" in removed.stdout
    assert {info.key.split("/")[0] for info in store.list()} == {DAYS[3], "dt=2026-11-25"}


def test_what_others_put_beside_a_dataset_stays(root: str) -> None:
    """Annotations of the user's are named, and left where they are; the dataset is gone all the same."""
    store = open_store(root)
    mine = [f"{DAYS[0]}/{name}" for name in (".genworker/notes.txt", "annotations.csv", "data/mine.txt", "more/y")]
    for key in mine:
        store.put(key, b"mine")
    for flags, word in (([], "found:   1"), (["--delete"], "removed: 1")):
        done = CliRunner().invoke(cli, ["retain", root, "--keep", "3", *flags])
        assert f"not genworker's, so left there: 4 objects, {mine[0]} first" in done.stdout
        assert word in done.stdout
    assert [info.key for info in store.list(f"{DAYS[0]}/")] == mine
    assert find_old(store, 3) == []


@pytest.mark.parametrize("plan", [None, b'{"version":0}'])
def test_the_manifest_holds_the_plan_too(root: str, plan: bytes | None) -> None:
    """A dataset that lost its plan, or whose plan was damaged, is known by its manifest."""
    store = open_store(root)
    store.delete(f"{DAYS[0]}/{PLAN_KEY}")
    if plan is not None:
        store.put(f"{DAYS[0]}/{PLAN_KEY}", plan)
    done = CliRunner().invoke(cli, ["retain", root, "--keep", "3", "--delete"])
    assert done.exit_code == 0
    assert list(store.list(f"{DAYS[0]}/")) == []


def test_a_removal_that_gc_began_too_late_is_none_of_retains(root: str) -> None:
    """Its notice beside a published dataset says nothing; the dataset goes when its turn comes, and is not called begun."""
    store = open_store(root)
    store.put(f"{DAYS[0]}/{REMOVING_KEY}", NOTICES[GC])
    assert [(doomed.name, doomed.begun) for doomed in find_old(store, 3)] == [(DAYS[0], False)]
    assert find_old(store, 4) == []


def test_what_nobody_can_tell_apart_is_left_and_told(root: str) -> None:
    """Without plan and manifest a dataset's own objects are not known; the other datasets are removed all the same."""
    store = open_store(root)
    for key in (PLAN_KEY, MANIFEST_KEY):
        store.put(f"{DAYS[0]}/{key}", b"damaged", overwrite=True)
    before = [info.key for info in store.list(f"{DAYS[0]}/")]
    done = CliRunner().invoke(cli, ["retain", root, "--keep", "2", "--delete"])
    assert done.exit_code == 1
    assert "cannot be removed: nobody can tell which objects are the dataset's own" in done.stdout
    assert "removed: 1 datasets" in done.stdout
    assert [info.key for info in store.list(f"{DAYS[0]}/")] == before
    assert list(store.list(f"{DAYS[1]}/")) == []


def seen_by_a_reader(url: str) -> str:
    """Whether a reader finds the dataset whole, or not at all; anything else fails."""
    try:
        opened = genworker.open(url)
    except GenworkerError:
        assert SUCCESS_KEY not in {info.key for info in open_store(url).list()}
        return "nothing"
    assert sum(len(batch.sample_index) for batch in opened.batches()) == 20
    return "whole"


def note(seen: list[str], url: str) -> None:
    seen.append(seen_by_a_reader(url))


def test_a_removal_may_stop_anywhere(tmp_path: Path) -> None:
    """After every single change a reader sees all or nothing, nobody may add, and the next call ends the removal."""
    budget = 0
    while True:
        root = f"{tmp_path}/{budget}"
        url = f"{root}/{DAYS[0]}"
        for day in DAYS[:2]:
            dataset.publish(f"{root}/{day}", dataset.make_plan(num_samples=20))
        store = open_store(root)
        seen: list[str] = []  # by readers, ahead of every change
        stopping = Stopping(store, budget, functools.partial(note, seen, url))
        (doomed,) = find_old(store, 1)
        try:
            remove_dataset(stopping, doomed)  # type: ignore[arg-type]
        except InterruptedError:
            if budget:  # the notice is there
                with pytest.raises(PlanError, match="is removing this dataset"):
                    check_kept(open_store(url))
                (again,) = find_old(store, 5)
                assert (again.name, again.begun) == (DAYS[0], True)
                remove_dataset(store, again)
        assert seen == sorted(seen, reverse=True)  # whole, ..., nothing, ...
        if budget:
            assert [info.key for info in store.list(f"{DAYS[0]}/")] == []
        assert seen_by_a_reader(f"{root}/{DAYS[1]}") == "whole"
        if stopping.left:
            break
        budget += 1
    assert budget > 8
    check_kept(open_store(url))


def test_what_retain_refuses(root: str) -> None:
    """A dataset named itself, and one inside of another that would go with it."""
    with pytest.raises(DatasetError, match="is a dataset itself"):
        find_old(open_store(f"{root}/{DAYS[0]}"), 1)
    dataset.publish(f"{root}/{DAYS[0]}/inner", dataset.make_plan(num_samples=20))
    with pytest.raises(DatasetError, match="holds another dataset"):
        find_old(open_store(root), 1)


def test_a_notice_alone_is_finished(tmp_path: Path) -> None:
    """Stopped before its very last step, a removal has only its notice left, and the next call takes it."""
    store = open_store(str(tmp_path))
    store.put(f"{DAYS[0]}/{REMOVING_KEY}", b"{}")
    (doomed,) = find_old(store, 1)
    remove_dataset(store, doomed)
    assert list(store.list()) == []
