"""Runs that a schedule asks for: templates, dates, and one dataset per date however often it is triggered."""

from __future__ import annotations

import datetime
import json
import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from genworker.bulk.request import GenerateSpec
from genworker.bulk.schedule import load_run, runs_between
from genworker.cli import cli
from genworker.config import preset_names
from genworker.errors import UsageError
from genworker.reading import verify
from tests.chaos.forked import Forked
from tests.chaos.ground import FINISH_SECONDS
from tests.chaos.jobs import Counted, trigger
from tests.datasets import published_digests, stored_shards
from tests.memory import growth

if TYPE_CHECKING:
    from pathlib import Path

MONDAY = datetime.date(2026, 11, 23)


@pytest.fixture
def spec_file(tmp_path: Path, tiny_bundle: str) -> str:
    """A spec of small runs whose URL and seed follow the date."""
    values = {
        "bundle": tiny_bundle,
        "out": f"{tmp_path}/runs/dt={{{{ date }}}}",
        "seed": "{{ date.strftime('%Y%m%d') }}",
        "num_samples": 60,
        "samples_per_shard": 10,
    }
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_a_template_becomes_a_url_and_a_seed(spec_file: str, tmp_path: Path) -> None:
    """Date and run id are filled in; the same values give the same spec."""
    spec = load_run(spec_file, date=MONDAY)
    assert spec.out == f"{tmp_path}/runs/dt=2026-11-23"
    assert spec.seed == 20261123
    assert spec == load_run(spec_file, date=MONDAY)
    named = load_run(spec_file, ["out=s3://b/{{ run_id }}/{{ date.year }}"], date=MONDAY, run_id="gan-7")
    assert named.out == "s3://b/gan-7/2026"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("actors=2:8", "actors", (2, 8)),
        ("actors=[2, 8]", "actors", (2, 8)),
        ("actors=8", "actors", 8),
        ("labels=3", "labels", "3"),
        ("labels=03", "labels", "3"),
        ("wait_timeout=1e2", "wait_timeout", 100.0),
        ("calibrate=false", "calibrate", False),
    ],
)
def test_specs_take_what_flags_take(spec_file: str, override: str, key: str, value: object) -> None:
    """A range of actors and a class number, as they are written by hand."""
    assert getattr(load_run(spec_file, [override], date=MONDAY), key) == value


@pytest.mark.parametrize("override", ["micro_batch=2:30", "wait_timeout=1:30", "max_attempts=true", "num_samples=on"])
def test_numbers_are_not_guessed(spec_file: str, override: str) -> None:
    """A time of day is no number of samples, and a switch is no number."""
    with pytest.raises(UsageError, match=f"key '{override.partition('=')[0]}' is "):
        load_run(spec_file, [override], date=MONDAY)


def test_shipped_specs_of_schedules_are_complete() -> None:
    """Each can be loaded for a date and puts the date into its URL; `train` does not offer them."""
    names = preset_names(GenerateSpec.presets)
    assert "nightly" in names
    for name in names:
        assert "2026-11-23" in load_run(name, date=MONDAY).out
        assert load_run(name, date=MONDAY).seed != load_run(name, date=MONDAY + datetime.timedelta(1)).seed
    assert not set(names) & set(preset_names())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("out=s3://b/{{ dat }}", "'dat' is undefined"),
        ("out=s3://b/{{ run_id }}", "not given: --run-id"),
        ("bundle=s3://b/{{ date }}", "only out and seed may hold templates"),
        ("out=s3://b/{{ date.strftime.__globals__ }}", "cannot be filled in"),
        ("out=s3://b/{{ ''.__class__.__mro__ }}", "cannot be filled in"),
        ("out=s3://b/{% include '/etc/passwd' %}", "cannot be filled in"),
        ("out=s3://b/{{ range(9) }}", "cannot be filled in"),
        ("out=s3://b/{{ date", "cannot be filled in"),
        ("out=s3://b/{% if date %}a{% endif %}", "no {% statements %}"),
        ("out=s3://b/" + "{{ date }}" * 200, "at most 1024 characters"),
        ("out=s3://b/{{ 'x' * 10 ** 9 }}", "none has **"),
        ("out=s3://b/{{ 'x' * 1000000000 }}", "only numbers below 2**63 have *"),
        ("out=s3://b/{{ 2000000000 * 2000000000 * 2000000000 * 2 }}", "only numbers below 2**63 have *"),
        ("out=s3://b/{{ [0] * 1000000000 }}", "only numbers below 2**63 have *"),
        ("out=s3://b/{{ '%1000000000d' % 1 }}", "only numbers below 2**63 have * and %"),
        ("out=s3://b/{{ '{:1000000000}'.format(1) }}", "cannot be filled in"),
        ("out=s3://b/{{ 'x'.ljust(1000000000) }}", "cannot be filled in"),
        ("out=s3://b/{{ 'x' | center(1000000000) }}", "cannot be filled in"),
        ("out=s3://b/{{ 1 // 0 }}", "cannot be filled in"),
        ("out=s3://b/{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "cannot be filled in"),
        ("seed='{{ date }}'", "key 'seed' is '2026-11-23'"),
    ],
)
def test_what_a_template_may_not(spec_file: str, override: str, message: str) -> None:
    """A template that asks for anything but the two values ends in one message that shows it."""
    with growth() as grown, pytest.raises(UsageError, match="key") as caught:
        load_run(spec_file, [override], date=MONDAY)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2_000
    assert grown.mib < 50


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        ("{{ date.year * 10000 + date.month * 100 }}", 20261100),
        ("{{ date.strftime('%j') | int }}", 327),
        ("{{ date.isocalendar().week }}", 48),
        ("{{ date.toordinal() % 7 }}", 1),
        ("{{ date.timetuple().tm_yday }}", 327),
    ],
)
def test_a_template_may_reckon_with_dates(spec_file: str, seed: str, expected: int) -> None:
    """Numbers, and what a date tells of itself."""
    assert (
        load_run(spec_file, [f"seed={seed!r}" if "'" not in seed else f'seed="{seed}"'], date=MONDAY).seed == expected
    )


def test_a_template_may_be_a_whole_value(spec_file: str) -> None:
    """Without quotes of its own, though to YAML it would be a mapping within a mapping."""
    run = load_run(spec_file, ["seed={{ date.toordinal() }}", "out={{ run_id }}"], date=MONDAY, run_id="gan-7")
    assert (run.seed, run.out) == (MONDAY.toordinal(), "gan-7")


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "a b", "x" * 65, "a\n"])
def test_a_run_id_is_a_name(spec_file: str, run_id: str) -> None:
    with pytest.raises(UsageError, match="becomes part of a URL"):
        load_run(spec_file, run_id=run_id, date=MONDAY)


def test_dates_run_from_the_first_to_the_last(spec_file: str) -> None:
    """Both ends are included, months end where they do, and each date has its own URL."""
    runs = runs_between(spec_file, [], datetime.date(2028, 2, 27), datetime.date(2028, 3, 1))
    assert [date.isoformat() for date, _ in runs] == ["2028-02-27", "2028-02-28", "2028-02-29", "2028-03-01"]
    assert len({spec.out for _, spec in runs}) == 4
    with pytest.raises(UsageError, match="swap them"):
        runs_between(spec_file, [], MONDAY, MONDAY - datetime.timedelta(days=1))
    with pytest.raises(UsageError, match="needs a URL of its own"):
        runs_between(spec_file, ["out=s3://b/all"], MONDAY, MONDAY + datetime.timedelta(days=1))


def test_the_command_line_fills_in_a_spec(spec_file: str) -> None:
    """Flags that were typed win over the file, defaults of flags do not; a spec's flags without a spec are refused."""
    runner = CliRunner()
    done = runner.invoke(
        cli, ["generate", "--spec", spec_file, "--date", "2026-11-23", "--num-samples", "30", "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    plan = yaml.safe_load(done.stdout)["plan"]
    assert (plan["seed"], plan["num_samples"], plan["samples_per_shard"]) == (20261123, 30, 10)
    for arguments in (["--date", "2026-11-23"], ["--set", "seed=1"]):
        refused = runner.invoke(cli, ["generate", "x", "--out", "y", "--num-samples", "1", *arguments])
        assert refused.exit_code == 2
        assert "name one with --spec" in refused.output
    missing = runner.invoke(cli, ["generate", "x", "--num-samples", "1"])
    assert missing.exit_code == 2
    assert "Missing option '--out'" in missing.output


def test_a_backfill_tells_what_became_of_each_date(spec_file: str, tmp_path: Path) -> None:
    """As lines and as JSON; what is published is left, without a cluster."""
    first, second = (spec for _, spec in runs_between(spec_file, [], MONDAY, MONDAY + datetime.timedelta(days=1)))
    trigger(first.model_dump(mode="json"), str(tmp_path / "counted.json"))
    command = ["backfill", spec_file, "--from", "2026-11-23", "--to"]
    told = CliRunner().invoke(cli, [*command, "2026-11-24", "--dry-run"]).stdout
    assert told == (f"2026-11-23  {first.out}  published\n2026-11-24  {second.out}  missing\nmissing: 1 of 2 runs\n")
    done = CliRunner().invoke(cli, [*command, "2026-11-23", "--json"])
    assert json.loads(done.stdout)["runs"] == [
        {"date": "2026-11-23", "url": first.out, "state": "published", "summary": None}
    ]


def pull(spec: GenerateSpec, folder: Path) -> Counted:
    """Trigger a run in a process of its own, and wait for its end."""
    report = folder / f"trigger-{secrets.token_hex(8)}.json"
    assert Forked(trigger, spec.model_dump(mode="json"), str(report)).wait(FINISH_SECONDS) == 0
    return Counted(**json.loads(report.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_fifty_overlapping_triggers_make_ten_datasets(spec_file: str, tmp_path: Path) -> None:
    """Ten dates, each triggered five times, eight drivers at once: ten sound datasets, each shard stored once.

    A shard that two drivers make at the same time is work for nothing, never a second copy; the count is printed.
    """
    runs = runs_between(spec_file, [], MONDAY, MONDAY + datetime.timedelta(days=9))
    triggers = [spec for _, spec in runs for _ in range(5)]
    random.Random(3).shuffle(triggers)
    with ThreadPoolExecutor(8) as threads:
        counted = list(threads.map(lambda spec: pull(spec, tmp_path), triggers))
    digests = [published_digests(spec.out) for _, spec in runs]
    assert all(verify(spec.out) == [] for _, spec in runs)
    assert len({tuple(sorted(digest.items())) for digest in digests}) == 10  # each date has samples of its own
    made, wasted = (sum(getattr(one, what) for one in counted) for what in ("made", "wasted"))
    working = sum(one.made > 0 for one in counted)
    print(  # noqa: T201 - the figures are asked for
        f"50 triggers over 10 dates, {working} of them with work: 10 datasets, 60 shards, {wasted} made in vain"
    )
    assert made - wasted == 60 == sum(len(stored_shards(spec.out)) for _, spec in runs)
    assert wasted < 50 * 6 - 60
    # Replayed once all is there, the same triggers make nothing.
    assert [pull(spec, tmp_path) for spec in triggers[:5]] == [Counted(0, 0)] * 5
    assert [published_digests(spec.out) for _, spec in runs] == digests
