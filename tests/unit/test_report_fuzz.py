"""Runs whose files hold anything: every one is listed and has a page, and no text of theirs steers a terminal."""

from __future__ import annotations

import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from rich.console import Console

from genworker import bundle as bundles
from genworker.cli import cli, display
from genworker.stores import open_store
from genworker.training import loop, record
from tests.fakes import models
from tests.fuzz import mutated

if TYPE_CHECKING:
    from pathlib import Path

EVALUATION = record.evaluation_key(16)
DIVERGED = "diverged/metrics-1.jsonl"
BUNDLE = record.BUNDLE_PREFIX + bundles.BUNDLE_KEY
FILES = [record.SPEC_KEY, record.METRICS_KEY, DIVERGED, record.ALARMS_KEY, record.ENVIRONMENT_KEY, EVALUATION, BUNDLE]
# Of a run's reports: a page takes as long as it has drawings.
DRAWN = ("images_seen", "seconds", "images_per_second", "elbo.kl", "kl_per_latent", "forward_share", "nonfinite_steps")
# What has made readers stumble, beside what hypothesis thinks of.
ODD: list[Any] = [
    *(
        "\ud800",
        "\udfff\ud800",
        "\x1b[2J\x07",
        "\x9b",
        "\x00",
        "a\nb\r",
        "\u2028\u202e",
        "$\\frac{",
        "_",
        "{{ 1 }}",
        "<b>",
    ),
    *(0, -1, True, 5e-324, 1e99, 1e308, -1e308, 2**53, 2**63, 10**400, float("nan"), float("inf")),
    *([], {}, [None], [[1.0]], {"a": {"b": [1]}}, {"float": 1.0}),
]
NAMES = ["images_seen", "a.r1", "b_share", "my.kl_per_latent", "metric", "cards", "nonfinite_steps", "seconds", "items"]
text = st.text(st.characters() | st.characters(categories=["Cs", "Cc", "Cf"]), max_size=8)
leaves = st.sampled_from(ODD) | text | st.integers() | st.floats() | st.none() | st.booleans()
names = st.sampled_from([*NAMES, *(odd for odd in ODD if isinstance(odd, str))]) | text
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that has everything: a bundle, an evaluation, an alarm, a rollback."""
    place = tmp_path_factory.mktemp("finished") / "run"
    spec = models.train_spec("vae", report_every_images=16, checkpoint_every_images=16)
    store = open_store(str(place))
    record.claim(spec, store)
    cpu = torch.device("cpu")
    loop.train(spec, models.shipped_source(), store, rank=0, world_size=1, device=cpu, hooks=loop.Hooks())
    cards = {"frechet": {"label": "a", "settings": {}}, "prdc": {"label": "b", "settings": {"k": 5}}}
    metrics = {"frechet": 2.0, "recall": None}
    evaluation = {"images_seen": 16, "metrics": metrics, "floor": {"frechet": 0.2}, "cards": cards, "seconds": 1.0}
    store.put(EVALUATION, json.dumps(evaluation).encode())
    store.put(record.evaluation_key(32), json.dumps(evaluation | {"images_seen": 32}).encode())
    alarm = {"images_seen": 24, "kind": "rollback", "text": "went back"}
    store.put(record.ALARMS_KEY, json.dumps(alarm).encode(), overwrite=True)
    reports = [{name: line[name] for name in DRAWN} for line in record.read_lines(store, record.METRICS_KEY)]
    store.put(record.METRICS_KEY, b"\n".join(json.dumps(line).encode() for line in reports), overwrite=True)
    store.put(DIVERGED, store.get(record.METRICS_KEY))
    return place


def changed(data: bytes, draw: st.DataObject) -> bytes:
    """A file, or one of its lines, with anything somewhere in it, or cut and spliced."""
    lines = [data] if data.startswith(b"{\n") else data.splitlines()  # bundle.json is one value of many lines
    at, rng = draw.draw(st.integers(0, len(lines) - 1)), draw.draw(st.randoms(use_true_random=False))
    if draw.draw(st.booleans()):
        lines[at] = mutated(lines[at], data, rng)
    else:
        value = json.loads(lines[at])
        for _ in range(draw.draw(st.integers(1, 3))):
            value = put(value, draw.draw(names), draw.draw(values), rng)
        lines[at] = json.dumps(value).encode()
    return b"\n".join(lines)


def put(whole: Any, name: str, value: Any, rng: random.Random) -> Any:
    """``whole`` with ``value`` in the place of some part of it, or beside it under a new name."""
    if not isinstance(whole, dict | list) or not whole or rng.random() < 0.1:
        return value
    if isinstance(whole, list):
        at = rng.randrange(len(whole))
        return [*whole[:at], put(whole[at], name, value, rng), *whole[at + 1 :]]
    if rng.random() < 0.2:
        return whole | {name: value}
    key = rng.choice(list(whole))
    return whole | {key: put(whole[key], name, value, rng)}


# Nothing is made smaller: that takes minutes.
QUIETLY: Any = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=20, phases=[Phase.generate], **QUIETLY)
@hypothesis.given(st.data())
def test_whatever_its_files_hold_a_run_is_listed_and_has_a_page(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    """No traceback; a page of UTF-8; no control character but the ends of lines."""
    place = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, place / "run")
    for key in draw.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True)):
        (place / "run" / key).write_bytes(changed((finished / key).read_bytes(), draw))
    page = place / "page.html"
    for args in (
        ["report", place / "run", "--out", page],
        ["runs", place],
        ["runs", place, "--json"],
        ["info", place / "run"],
        ["info", place / "run" / "bundle"],
    ):
        outcome = CliRunner().invoke(cli, [str(arg) for arg in args], color=True)
        assert outcome.exception is None or isinstance(outcome.exception, SystemExit), args
        assert outcome.exit_code == 0 or args[-1] == place / "run" / "bundle", outcome.output
        assert fit(outcome.output)
        if args[0] == "runs" and "--json" not in args:
            assert len(outcome.stdout.splitlines()) == 1
            assert outcome.stdout.startswith("run  ")
    assert fit(page.read_bytes().decode())
    terminal = Console(force_terminal=True, width=200, color_system=None)
    with pytest.MonkeyPatch.context() as patch, terminal.capture() as captured:
        patch.setattr(display, "out", terminal)
        assert CliRunner().invoke(cli, ["runs", str(place)]).exit_code == 0
    assert fit(captured.get())
    shutil.rmtree(place)


def fit(shown: str) -> bool:
    """Whether it neither steers a terminal nor reorders what is around it."""
    return all(
        char == "\n" or not (char < " " or "\x7f" <= char < "\xa0" or "\u202a" <= char <= "\u202e") for char in shown
    )
