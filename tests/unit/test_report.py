"""Reading runs in every state, and their pages: whole, escaped, and in need of nothing else."""

from __future__ import annotations

import base64
import json
import math
import os
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from genworker import families
from genworker.errors import UsageError
from genworker.report import curves, page
from genworker.report.panels import PANELS, panels_for
from genworker.report.reader import find_runs, read_run
from genworker.stores import open_store
from genworker.training import loop, pictures, record
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genworker.report.run import Run
    from genworker.stores.base import Store
    from genworker.training.spec import TrainSpec
    from tests.servers import S3Server

CPU = torch.device("cpu")
SECTIONS = {"curves", "samples", "health", "evaluations", "spec", "lineage", "environment"}
NASTY = '<script>alert("x")</script> & <b>'


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.images: list[bytes] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            if name in {"href", "src", "srcset", "action", "data", "poster"} or (
                name == "style" and "url(" in str(value)
            ):
                self.links.append(str(value))
            if tag == "img" and name == "src":
                self.images.append(base64.b64decode(str(value).partition(",")[2], validate=True))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def page_of(store: Store) -> Page:
    """The page of a run, with what holds for every page."""
    html = page.render(read_run(store), store)
    seen = Page(html)
    assert not seen.open
    assert seen.ids >= SECTIONS
    assert all(link.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#")) for link in seen.links)
    assert not {"script", "link", "iframe", "object", "base", "form"}.intersection(seen.tags)
    assert "@import" not in html
    assert "url(" not in html
    for image in seen.images:
        if not image.startswith(b"\x89PNG"):
            links = [
                value
                for node in ElementTree.fromstring(image).iter()  # noqa: S314  # drawn by ourselves
                for name, value in node.attrib.items()
                if name.endswith("href")
            ]
            assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    return seen


def begin(store: Store, spec: TrainSpec | None = None) -> Store:
    record.claim(spec or models.train_spec(), store)
    return store


def lines(store: Store, key: str, *values: dict[str, Any]) -> None:
    written = record.Lines(store, key)
    for value in values:
        written.append(value)
    written.flush()


def report(images_seen: int, **values: Any) -> dict[str, Any]:
    return {"images_seen": images_seen, "images_per_second": 100.0, "seconds": 1.0, **values}


def age(store: Store, seconds: float) -> None:
    """Make everything in a folder's store older."""
    for info in store.list():
        path = f"{store.url}/{info.key}"
        os.utime(path, (info.modified - seconds, info.modified - seconds))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run's store."""
    return open_store(str(tmp_path / "runs" / "clothes"))


@pytest.fixture(scope="module", params=["vae", "r3gan"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A real run of the loop, finished."""
    name = request.param
    spec = models.train_spec(name, report_every_images=8, checkpoint_every_images=16)
    store = begin(open_store(str(tmp_path_factory.mktemp("runs") / name)), spec)
    loop.train(spec, models.shipped_source(), store, rank=0, world_size=1, device=CPU, hooks=loop.Hooks())
    return store


def test_a_run_of_the_loop_is_on_its_page(trained: Store) -> None:
    """Verdict, curves of all that was reported, pictures, lineage and environment of a run that really ran."""
    run = read_run(trained)
    assert (run.state, run.images_seen, run.planned_images) == ("finished", 48, 48)
    assert not run.damaged
    assert run.bundle is not None
    assert sorted(run.pictures)[-1] == 48
    seen = page_of(trained)
    drawn = {name for panel in panels_for(run.last_report) for name in panel.metrics}
    assert drawn == run.last_report.keys() - {"images_seen", "seconds"}
    assert drawn & {panel.title for panel in panels_for(run.last_report)} == set()  # none under its name in the code
    pngs = [image for image in seen.images if image.startswith(b"\x89PNG")]
    assert trained.get(pictures.key_of(48)) in pngs
    assert len(pngs) == len(run.pictures)
    for text in (
        "finished",
        run.bundle.digest,
        run.bundle.lineage.source_digest,
        "48 of 48 images seen",
        torch.__version__,
    ):
        assert text in seen.text
    titles = {curve.title for curve in curves.draw(run)}
    assert titles >= {"Gradient norms", "Images per second", "Where the time goes"}
    assert titles >= (
        {"KL per latent", "Active units"} if run.family == "vae" else {"Adversarial losses", "Gradient penalties"}
    )


def test_a_run_that_has_not_begun_has_a_page(store: Store) -> None:
    """Only the spec is there: every section says that it is empty."""
    seen = page_of(begin(store))
    assert read_run(store).state == "running"
    for text in (
        "No report is stored yet.",
        "No picture is stored yet.",
        "None yet.",
        "has not started yet",
        "batch_size: 8",
    ):
        assert text in seen.text
    assert not seen.images


def test_no_run_is_refused(store: Store) -> None:
    """A URL without a run is the user's mistake."""
    with pytest.raises(UsageError, match=r"no training run here \(no spec.json\)"):
        read_run(store)


def test_a_run_that_no_longer_writes_has_stopped(store: Store) -> None:
    """It runs while it writes as often as its checkpoints are due, and is stopped after that."""
    begin(store)
    lines(store, record.METRICS_KEY, report(16), report(32))
    store.put("checkpoints/images-000000000032.safetensors", b"x")
    assert read_run(store).state == "running"
    age(store, 100)
    assert read_run(store).state == "running"
    # 20,000 images between checkpoints at 100 images/s are 200 s, so three times that and 120 s are too long.
    age(store, 700)
    run = read_run(store)
    assert run.state == "stopped"
    assert run.checkpoints == [32]
    assert "Nothing was written for 13 min. Run the same command again to go on." in page_of(store).text
    # An evaluation that comes later does not make it run.
    store.put("evaluations/images-000000000032.json", b'{"images_seen": 32, "metrics": {"frechet": 1.0}}')
    assert read_run(store).state == "stopped"


def test_a_run_that_gave_up_has_diverged_until_it_is_started_again(store: Store) -> None:
    """The last alarm decides, and what was written after it."""
    begin(store)
    lines(store, record.ENVIRONMENT_KEY, {"started": "2026-01-01T00:00:00+00:00", "images_seen": 0})
    lines(store, record.METRICS_KEY, report(16), report(32))
    lines(store, record.ALARMS_KEY, {"images_seen": 32, "kind": "gave_up", "text": "the run diverged again"})
    assert read_run(store).state == "diverged"
    assert "The watchdog gave up" in page_of(store).text
    age(store, 10)
    lines(store, record.ENVIRONMENT_KEY, {"started": "2026-01-02T00:00:00+00:00", "images_seen": 16})
    assert read_run(store).state == "running"


def alarmed(store: Store) -> Store:
    """A run with everything that can go wrong, and names and texts that try to get out of the page."""
    begin(store)
    names = {
        "discriminator.adversarial": 1.0,
        "elbo.kl_per_latent": [0.5, None, 2.0],
        NASTY: 3.0,
        "$\\frac{1}{2}$": 1.0,
    }
    reports = [report(8 * i, **names, nonfinite_steps=i, skipped_steps=0, rollbacks=1) for i in range(1, 5)]
    reports[2]["discriminator.adversarial"] = math.nan
    reports[1]["checkpoint_share"] = 0.25  # only reports with a checkpoint have one
    for line in reports:
        line["forward_share"] = 0.5
    lines(store, record.METRICS_KEY, *reports)
    back = (json.dumps(report(24, **{"discriminator.adversarial": 9.0})) + "\n").encode()
    store.put("diverged/metrics-1.jsonl", back)
    lines(
        store,
        record.ALARMS_KEY,
        {"images_seen": 24, "kind": "rollback", "text": f"went back {NASTY}"},
        {"images_seen": 32, "kind": NASTY, "text": "odd"},
    )
    lines(
        store,
        record.ENVIRONMENT_KEY,
        {"started": "2026-01-01T00:00:00+00:00", "images_seen": 0, "device": NASTY, "versions": {"torch": "2"}},
        {"started": "2026-01-02T00:00:00+00:00", "images_seen": 16, "host": "node-7", "precision": "bfloat16"},
    )
    for images, frechet in ((16, 4.0), (24, 2.0), (32, 3.0)):
        shared = {"extractor": "classifier-64", "num_real": 200}
        evaluation = {
            "images_seen": images,
            "metrics": {"frechet": frechet, "recall": None},
            "floor": {"frechet": 0.25},
            "cards": {
                "frechet": {"label": NASTY, **shared, "settings": {}},
                "prdc": {"label": "precision", **shared, "settings": {"k": 5}},
            },
            "seconds": 12.0,
        }
        store.put(f"evaluations/images-{images:012d}.json", json.dumps(evaluation).encode())
    store.put(pictures.key_of(16), pictures.png_bytes(np.zeros((4, 4, 3), np.uint8)))
    return store


def test_what_went_wrong_is_on_the_page_and_nothing_gets_out_of_it(store: Store) -> None:
    """Alarms, rollbacks, non-finite values, evaluations with their floor and cards; text from files stays text."""
    seen = page_of(alarmed(store))
    assert seen.text.count(NASTY) >= 4  # as text: two alarms, a device, a card
    for text in (
        "went back",
        "node-7",
        "precision bfloat16",
        "extractor classifier-64",
        "settings.k 5",
        "24 (best frechet)",
    ):
        assert text in " ".join(seen.text.split()), text
    assert "0.25" in seen.text  # the floor
    titles = {curve.title: curve for curve in curves.draw(read_run(store))}
    assert NASTY in titles
    assert titles["frechet"].text == "frechet: 3 at image 32"
    assert titles.keys() >= {"What went wrong", "Where the time goes"}
    assert "recall" not in titles  # never a number


EVALUATION = "evaluations/images-000000000008.json"
SEEN = b'{"images_seen": 8, '
STRANGE: list[tuple[str, bytes]] = [
    (record.SPEC_KEY, b'{"training": {"images": [1]}}'),
    (record.SPEC_KEY, b'{"training": {"images": 1e999}}'),
    (record.SPEC_KEY, b'{"training": {"images": "data/train.zip"}}'),
    (record.SPEC_KEY, b'{"training": {"images": 8, "checkpoint_every_images": "x"}}'),
    (record.SPEC_KEY, b'{"a": '),
    (record.SPEC_KEY, b"[" * 100_000),
    (record.METRICS_KEY, b"[" * 100_000),
    (record.METRICS_KEY, b'{"images_seen": "x"}'),
    (record.METRICS_KEY, b'{"images_seen": NaN}'),
    (record.METRICS_KEY, b'{"images_seen": true}'),
    (record.METRICS_KEY, b'{"images_seen": 99999999999999999999999999}'),
    (record.METRICS_KEY, SEEN + b'"nonfinite_steps": "q"}'),
    (record.METRICS_KEY, SEEN + b'"seconds": "x"}'),
    (record.METRICS_KEY, SEEN + b'"images_per_second": "x"}'),
    (record.METRICS_KEY, SEEN + b'"elbo.kl": {"a": 1}}'),
    (record.METRICS_KEY, SEEN + b'"kl_per_latent": [1.0, "x"]}'),
    (record.METRICS_KEY, SEEN + b'"nonfinite_steps": [1]}'),
    (record.METRICS_KEY, SEEN + b'"images_per_second": [1.0]}'),
    (record.METRICS_KEY, SEEN + b'"elbo.kl": 1e999}'),
    (record.METRICS_KEY, SEEN + b'"elbo.kl": 1' + b"0" * 400 + b"}"),
    (record.ALARMS_KEY, SEEN + b'"kind": ["a"], "text": "x"}'),
    (record.ALARMS_KEY, b'{"images_seen": "x", "kind": "a", "text": "x"}'),
    (record.ENVIRONMENT_KEY, b'{"images_seen": "x"}'),
    (record.ENVIRONMENT_KEY, b'{"versions": 4}'),
    (record.SPEC_KEY, b"null"),
    (record.SPEC_KEY, b'{"training": {"images": 8}, "a": ' + b"[" * 400 + b"]" * 400 + b"}"),
    (record.ENVIRONMENT_KEY, b'{"host": ' + b"[" * 400 + b"]" * 400 + b"}"),
    (EVALUATION, SEEN + b'"metrics": {}, "cards": {"a": ' + b'{"a": ' * 400 + b"1" + b"}" * 402),
    (EVALUATION, b'{"images_seen": "x", "metrics": {"frechet": 1.0}}'),
    (EVALUATION, SEEN + b'"metrics": {"frechet": "1.0"}}'),
    (EVALUATION, SEEN + b'"metrics": {"frechet": 1.0}, "floor": [1]}'),
    (EVALUATION, SEEN + b'"metrics": {"frechet": 1.0}, "cards": 3}'),
    (EVALUATION, SEEN + b'"metrics": {"frechet": 1.0}, "seconds": "x"}'),
]


@pytest.mark.parametrize(("key", "text"), STRANGE, ids=[f"{key}: {text[:60]!r}" for key, text in STRANGE])
def test_json_of_other_things_is_named_and_never_raises(store: Store, key: str, text: bytes) -> None:
    """Well formed or not: anybody may write below a URL. The run is listed, and has its page, without it."""
    begin(store)
    lines(store, record.METRICS_KEY, report(8, **{"elbo.kl": 1.0}))
    store.put(f"{record.BUNDLE_PREFIX}notes", b"mine")
    store.put("checkpoints/images-999999999999999999999999999999.safetensors", b"x")
    there = store.get(key) if key == record.METRICS_KEY else b""
    store.put(key, there + text + b"\n", overwrite=True)
    run = read_run(store)
    assert len([line for line in run.damaged if line.startswith(key)]) == len(run.damaged) == 1
    assert run.images_seen == 8
    assert "Could not be read" in page_of(store).text
    (listed,) = find_runs(store)
    assert listed.damaged == run.damaged


def test_another_programs_spec_is_no_run(store: Store) -> None:
    """With nothing of a run beside it, a file of that name is not listed, and hides no run."""
    begin(store)
    other = open_store(f"{store.url}/other")
    other.put(record.SPEC_KEY, b'{"training": {"images": "data/train.zip"}}')
    assert [run.url for run in find_runs(store)] == [store.url]


def test_damaged_files_are_named_and_the_rest_is_shown(store: Store) -> None:
    """A page comes out of whatever is there."""
    begin(store)
    store.put(record.METRICS_KEY, b'{"images_seen": 8, "elbo.kl": 1.0}\n{"images_se', overwrite=True)
    store.put("evaluations/images-000000000008.json", b'{"metrics": 3}')
    store.put("bundle/bundle.json", b"no")
    store.put(record.ALARMS_KEY, b'{"images_seen": 8}\n[]\n')
    run = read_run(store)
    # Two lines of alarms, one of metrics, an evaluation and the bundle.
    assert len(run.damaged) == 5
    for name in (
        "metrics.jsonl, line 2",
        "alarms.jsonl, line 1",
        "alarms.jsonl, line 2",
        "evaluations/",
        "bundle.json",
    ):
        assert sum(name in text for text in run.damaged) == 1, name
    assert not run.alarms
    assert run.images_seen == 8
    assert "Could not be read" in page_of(store).text
    store.put(record.SPEC_KEY, b"[]", overwrite=True)
    assert "It could not be read." in page_of(store).text


UNFIT = "\x1b[2J\x00\u202e_\ud800"
SHOWN = "\\x1b[2J\\x00\\u202e_"  # and the last one escaped or replaced


def test_what_cannot_be_shown_is_escaped(store: Store) -> None:
    """Control characters and halves of characters, in whatever text there is; a browser and UTF-8 want none of them."""
    spec = json.loads(models.train_spec().model_dump_json())
    spec["family"]["name"] = spec["evaluation"]["metric"] = spec["data"]["name"] = spec[UNFIT] = UNFIT
    store.put(record.SPEC_KEY, json.dumps(spec).encode())
    names = {f"{UNFIT}a.r1": 1.0, f"_{UNFIT}b.r1": 1.0, f"_{UNFIT}_share": 0.5, "forward_share": 0.5}
    lines(store, record.METRICS_KEY, report(8, **names))
    lines(store, record.ALARMS_KEY, {"images_seen": 8, "kind": UNFIT, "text": UNFIT})
    lines(store, record.ENVIRONMENT_KEY, {"host": UNFIT, "versions": {UNFIT: UNFIT}, UNFIT: [{UNFIT: UNFIT}]})
    card = {"metric": UNFIT, UNFIT: {UNFIT: UNFIT}}
    evaluation = {"images_seen": 8, "metrics": {UNFIT: 1.0, "_": 2.0}, "cards": {UNFIT: card, "_": card}}
    store.put(EVALUATION, json.dumps(evaluation).encode())
    seen = page_of(store)
    page.render(read_run(store), store).encode()
    assert seen.text.count(SHOWN) > 15
    assert all(char.isprintable() or char == "\n" for char in seen.text)
    svgs = [image.decode() for image in seen.images]
    assert sum(SHOWN in svg for svg in svgs) == 3  # two panels of the reports, one of the evaluations
    assert any("> _</text>" in svg for svg in svgs)  # and the metric of that name has its legend


def test_a_wrong_value_costs_no_more_than_itself(store: Store) -> None:
    """The rest of its line or file counts; it is named, and of many the first ones and how many more there are."""
    begin(store)
    wrong = {"elbo.kl": "12.5", "x.r1": {"a": 1}, "seconds": [2.0], "elbo.nll": 1e200, "images_per_second": 7.0}
    reports = [json.dumps({"images_seen": 8 * i, "elbo.loss": 1.0, **wrong}) for i in range(1, 101)]
    store.put(record.METRICS_KEY, "\n".join(reports).encode())
    start = {"images_seen": 0, "device": "cpu", "versions": {"torch": 2, "python": "3.11"}}
    store.put(record.ENVIRONMENT_KEY, json.dumps(start).encode())
    metrics = {"frechet": 1.0, "recall": "1"}
    evaluation = {"images_seen": 8, "metrics": metrics, "floor": {"frechet": "x", "recall": 0.5}, "seconds": True}
    store.put(EVALUATION, json.dumps(evaluation).encode())
    run = read_run(store)
    assert list(run.reports) == [
        {"images_seen": 8 * i, "elbo.loss": 1.0, "images_per_second": 7.0} for i in range(1, 101)
    ]
    assert list(run.starts) == [{"images_seen": 0, "device": "cpu", "versions": {"python": "3.11"}}]
    assert list(run.evaluations) == [{"images_seen": 8, "metrics": {"frechet": 1.0}, "floor": {"recall": 0.5}}]
    of_metrics = [text for text in run.damaged if text.startswith("metrics.jsonl")]
    assert sorted(of_metrics[:4]) == [
        "metrics.jsonl, line 1: elbo.kl: Input should be a valid number",
        "metrics.jsonl, line 1: elbo.nll: beyond 1e+100",
        "metrics.jsonl, line 1: seconds: Input should be a valid number",
        "metrics.jsonl, line 1: x.r1: Input should be a valid number",
    ]
    assert len(of_metrics) == 11
    assert of_metrics[-1] == "metrics.jsonl: 390 more like these"
    assert sorted(text.split(":")[1] for text in run.damaged if text.startswith("evaluations/")) == [
        " floor.frechet",
        " metrics.recall",
        " seconds",
    ]
    assert "390 more like these" in page_of(store).text


def test_a_name_of_any_length_is_cut(store: Store) -> None:
    """What is damaged is said in a sentence."""
    begin(store)
    store.put(record.METRICS_KEY, json.dumps({"images_seen": 8, "x" * 10_000: "y"}).encode())
    (text,) = read_run(store).damaged
    assert len(text) < 500


def test_an_evaluation_is_of_the_images_in_its_name(store: Store) -> None:
    """One that says otherwise would stand for another one; two names for one number are not ours."""
    begin(store)
    for key, images, metrics in (
        (EVALUATION, 16, {"recall": 1.0}),
        (record.evaluation_key(16), 16, {"frechet": 2.0}),
        (record.evaluation_key(24), 24, {"frechet": 3.0}),
        ("evaluations/images-0000000000024.json", 24, {"frechet": 1.0}),
    ):
        store.put(key, json.dumps({"images_seen": images, "metrics": metrics}).encode())
    run = read_run(store)
    assert [line["images_seen"] for line in run.evaluations] == [16, 24]
    assert run.damaged == [f"{EVALUATION}: images_seen is 16, and another number in its name"]
    assert run.best_evaluation == {"images_seen": 16, "metrics": {"frechet": 2.0}}
    assert "16 (best frechet)" in " ".join(page_of(store).text.split())


def test_a_page_of_a_run_on_s3(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """The same from an object store."""
    point_at(moto)
    store = open_store(f"s3://{moto.new_bucket()}/runs/clothes")
    seen = page_of(alarmed(store))
    assert store.url in seen.text
    assert [run.name for run in find_runs(open_store(store.url.removesuffix("/clothes")))] == ["clothes"]


def drawn(run: Run) -> dict[str, bytes]:
    return {curve.title: curve.svg for curve in curves.draw(run)}


def test_long_histories_are_thinned_and_spikes_are_said(store: Store) -> None:
    """A page of a long run stays small, and what is cut off is not hidden."""
    begin(store, models.train_spec(images=8 * 5_000))
    values = np.sin(np.arange(5_000))
    values[123] = 1e6
    reports = [report(8 * i, **{"elbo.kl": float(value)}) for i, value in enumerate(values, 1)]
    lines(store, record.METRICS_KEY, *reports)
    run = read_run(store)
    svg = drawn(run)["KL term"]
    assert len(svg) < 100_000
    assert "some values go to 1,000,000" in svg.decode()
    assert drawn(run)["KL term"] == svg  # equal runs give equal bytes


@pytest.mark.parametrize("values", [[1e99] * 3, [1e99 * (1 + i % 2 * 1e-15) for i in range(60)] + [2e99]])
def test_numbers_too_large_for_an_axis_of_their_own_are_drawn(store: Store, values: list[float]) -> None:
    """They cannot be told from their neighbours, one more and one less."""
    begin(store)
    lines(store, record.METRICS_KEY, *(report(8 * i, **{"elbo.kl": value}) for i, value in enumerate(values, 1)))
    assert "KL term" in drawn(read_run(store))


def test_every_metric_has_one_panel() -> None:
    """No metric is drawn twice or left out, known or not."""
    names = ["elbo.kl", "x.grad_norm", "discriminator.r1", "my.own", "active_units", "images_per_second", "images_seen"]
    found = [name for panel in panels_for(names) for name in panel.metrics]
    assert sorted(found) == sorted(set(names) - {"images_seen"})
    assert len({panel.title for panel in PANELS}) == len(PANELS)


def test_the_time_of_a_report_is_made_of_times(trained: Store) -> None:
    """What a family calls a share is no part of the time, and all parts of a real run's time are."""
    last = read_run(trained).last_report
    (panel,) = [panel for panel in panels_for(last) if panel.kind == "shares"]
    others = {"information_share", "worst_data_wait_share"}
    assert set(panel.metrics) == {name for name in last if name.endswith("_share")} - others
    titles = {panel.title for panel in panels_for(last) if "information_share" in panel.metrics}
    assert titles == ({"Information in the latents"} if "information_share" in last else set())


@pytest.mark.parametrize(
    "values",
    [
        {"name": "vae"},
        {"name": "r3gan", "augment": {}},
        {"name": "r3gan", "loss": "wasserstein", "gp": 10.0, "r1": False, "r2": False},
    ],
    ids=str,
)
def test_what_is_watched_has_a_title(values: dict[str, Any]) -> None:
    """A metric that raises alarms is drawn with a title and a note, not under its name in the code."""
    family = families.get(values["name"])
    watched = {band.metric for band in families.make(family.Config(**values), models.SMALL).bands()}
    assert watched
    for panel in panels_for(watched):
        assert panel.note
        assert panel.title not in watched
