"""What `genworker submit` sends: ids that follow from the content, files that go along, and no secrets."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from genworker.cli import cli
from genworker.config import preset_path
from genworker.errors import UsageError
from genworker.submit.jobs import read_environment
from genworker.submit.request import STOP_WAIT, Request, call_of


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "specs" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("seed: 1\n")
    return path


def test_the_id_follows_from_command_content_and_run(spec: Path) -> None:
    """The same request has the same id anywhere; another spec, argument or run id has another."""
    request = Request("train", [str(spec), "--out", "s3://b/run"], run_id="2026-11-25")
    same = Request("train", [str(spec), "--out", "s3://b/run"], run_id="2026-11-25")
    assert request.submission_id == same.submission_id
    assert request.submission_id.startswith("genworker-train-")
    assert request.submission_id.endswith("-2026-11-25")
    ids = {
        request.submission_id,
        Request("train", [str(spec), "--out", "s3://b/run"], run_id="2026-11-26").submission_id,
        Request("train", [str(spec), "--out", "s3://b/other"], run_id="2026-11-25").submission_id,
        Request("evaluate", [str(spec), "--out", "s3://b/run"], run_id="2026-11-25").submission_id,
    }
    spec.write_text("seed: 2\n")
    assert len(ids | {request.submission_id}) == 5


def test_a_spec_goes_along(spec: Path) -> None:
    """Without a working directory in one made for it, where the job finds it by its new name."""
    with Request("train", [str(spec), "--out", "x y"]).packed() as (entrypoint, environment):
        words = shlex.split(entrypoint)
        sent = Path(environment["working_dir"]) / words[4]
        assert sent.read_text() == "seed: 1\n"
        assert words[:4] == ["python", "-m", "genworker.cli", "train"]
        assert words[5:] == ["--out", "x y"]
    assert not sent.exists()


def test_the_id_does_not_follow_from_how_a_spec_is_named(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts with one spec in different places submit one job; the content of a shipped spec counts too."""
    monkeypatch.chdir(spec.parent)
    elsewhere = spec.parent / "deeper" / "copy"  # a spec needs no suffix
    elsewhere.parent.mkdir()
    elsewhere.write_text(spec.read_text())
    names = ["mine.yaml", "./mine.yaml", str(spec), "deeper/../mine.yaml", "deeper/copy"]
    spellings = [["--spec", name] for name in names] + [[f"--spec={name}"] for name in names]
    assert len({Request("generate", [*words, "--actors=2"]).submission_id for words in spellings}) == 1
    assert len({Request("train", [name, "--out=x"]).submission_id for name in names}) == 1
    assert len({Request("train", ["--out=x", name]).submission_id for name in names}) == 1
    shipped = preset_path("fashion-tiny")
    assert shipped is not None
    assert Request("train", ["fashion-tiny"]).submission_id == Request("train", [str(shipped)]).submission_id


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate", ["--spec=mine"]),
        ("generate", ["--actors=2", "--spec", "mine"]),
        ("evaluate", ["s3://b/run", "--data=mine"]),
        ("train", ["mine", "--out", "x"]),
        ("train", ["--out", "x", "mine"]),
    ],
)
def test_a_spec_goes_along_however_it_is_named(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a suffix, and behind an equals sign."""
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("seed: 1\n")
    with Request(command, words).packed() as (entrypoint, environment):
        (sent,) = (path for path in Path(environment["working_dir"]).rglob("*") if path.is_file())
        assert sent.name == "mine"  # which is what its run is called
        assert str(sent.relative_to(environment["working_dir"])) in shlex.split(entrypoint)


def test_what_a_command_writes_does_not_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("events.jsonl").write_text("{}\n")
    with Request("train", ["fashion-tiny", "--lineage", "events.jsonl"]).packed() as (_, environment):
        assert "working_dir" not in environment


@pytest.mark.parametrize("content", [b"name: caf\xe9\n", b"- 1\n", b"a: [\n"])
def test_a_file_that_is_no_spec_is_said_to_be_none(spec: Path, content: bytes) -> None:
    """Before anything is sent, in one message: bytes that are no UTF-8, no mapping, no YAML."""
    spec.write_bytes(content)
    for command, words in (("train", [str(spec)]), ("generate", [f"--spec={spec}"])):
        request = Request(command, words)
        assert request.submission_id.startswith(f"genworker-{command}-")
        with pytest.raises(UsageError, match=rf"spec {spec}: "):
            request.check()


def test_a_runtime_environment_goes_along(spec: Path, tmp_path: Path) -> None:
    """As it is, with the folder and the variables of the flags, which win."""
    path = tmp_path / "env.yaml"
    path.write_text("pip: [qoi]\nexcludes: [runs]\nenv_vars: {A: a, B: b}\n")
    folder = spec.parent.parent
    request = Request("train", [str(spec)], "", folder, {"B": "c"}, environment=read_environment(path))
    request.check()
    with request.packed() as (_, environment):
        assert environment.pop("env_vars") == {STOP_WAIT: "60", "A": "a", "B": "c"}
        assert environment == {"pip": ["qoi"], "excludes": ["runs"], "working_dir": str(folder)}
    path.write_text("env_vars:\nconfig: {setup_timeout_seconds: 60}\n")
    empty = Request("train", [], environment=read_environment(path))
    empty.check()
    with empty.packed() as (_, environment):
        assert environment["env_vars"] == {STOP_WAIT: "60"}
    with pytest.raises(UsageError, match="no spec is sent along"):
        Request("train", [str(spec)], environment={"working_dir": "s3://b/code.zip"}).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- pip", "holds a list at the top"),
        ("pips: [qoi]", "unknown key 'pips'; known keys: .*pip, "),
        ("env_vars: {A: 1}", "env_vars"),
        ("pip: 3", "pip"),
        ("pip: [", "while parsing"),
        ("caf\xe9: 1", "utf-8"),
    ],
)
def test_a_wrong_runtime_environment_is_refused(content: str, message: str, tmp_path: Path) -> None:
    """By the rules of Ray, before anything is sent."""
    path = tmp_path / "env.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=f"--runtime-env {path}: .*{message}"):
        read_environment(path)


def test_a_backfill_is_submitted(spec: Path) -> None:
    """Its spec goes along, as the one of a dataset that it is."""
    assert call_of("backfill", ["nightly", "--from", "2026-11-01"]) == ("backfill", ["nightly", "--from", "2026-11-01"])
    with Request("backfill", [str(spec), "--from=2026-11-01"]).packed() as (entrypoint, _):
        assert shlex.split(entrypoint)[3:] == ["backfill", "0/mine.yaml", "--from=2026-11-01"]
    shipped = preset_path("nightly", "generate")
    assert Request("backfill", ["nightly"]).submission_id == Request("backfill", [str(shipped)]).submission_id


def test_a_working_directory_is_sent_as_it_is(spec: Path) -> None:
    folder = spec.parent.parent
    with Request("train", [str(spec)], working_dir=folder).packed() as (entrypoint, environment):
        assert environment["working_dir"] == str(folder)
        assert shlex.split(entrypoint)[4] == "specs/mine.yaml"


def test_a_job_that_is_stopped_has_time_to_drain() -> None:
    """Longer than the jobs wait for their shards by default, unless another time is asked for."""
    (drain,) = (option.default for option in cli.commands["generate"].params if option.name == "drain_timeout")
    assert isinstance(drain, float)
    with Request("generate", []).packed() as (_, environment):
        assert int(environment["env_vars"][STOP_WAIT]) >= 2 * drain
    with Request("generate", [], variables={STOP_WAIT: "300", "A": "b"}).packed() as (_, environment):
        assert environment["env_vars"] == {STOP_WAIT: "300", "A": "b"}


def test_names_of_presets_are_left_alone() -> None:
    with Request("train", ["fashion-tiny", "--out", "x"]).packed() as (entrypoint, environment):
        assert entrypoint == "python -m genworker.cli train fashion-tiny --out x"
        assert "working_dir" not in environment


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("train", [], run_id="a b"), "run id 'a b'"),
        (Request("train", [], variables={"AWS_SECRET_ACCESS_KEY": "x"}), "--env AWS_SECRET_ACCESS_KEY"),
        (Request("train", [], variables={"hf_token": "x"}), "is shown to whoever sees"),
        (Request("train", [], environment={"env_vars": {"hf_token": "x"}}), "--env hf_token"),
        (Request("train", ["a", "--lineage", "http://me:hunter2@host/x"]), r"^http://\*\*\*@host/x: holds a URL with"),
        (Request("train", [], variables={"PROXY": "http://me:hunter2@host"}), r"^http://\*\*\*@host: holds"),
        (Request("train", [], environment={"pip": ["-i https://me:hunter2@host"]}), r"i https://\*\*\*@host"),
        (Request("train", [], working_dir=Path(), environment={"working_dir": "s3://b/c.zip"}), "in one of them"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request_.check()


def test_a_spec_says_which_command_it_is_for(tmp_path: Path) -> None:
    """Files by their keys and shipped ones by their folder; a dataset's gets the run id, and a date where it is one."""
    dataset, training, neither = (tmp_path / f"{name}.yaml" for name in "abc")
    dataset.write_text("bundle: b\nout: o/{{ run_id }}\n")
    training.write_text("family: {name: vae}\n")
    neither.write_text("seed: 1\n")
    assert call_of(str(dataset), ["--actors=2"]) == ("generate", ["--spec", str(dataset), "--actors=2"])
    assert call_of("nightly", [], "b7") == ("generate", ["--spec", "nightly", "--run-id", "b7"])
    assert call_of("nightly", [], "2026-11-25")[1][2:] == ["--run-id", "2026-11-25", "--date", "2026-11-25"]
    assert call_of(str(training), ["--out", "o"], "b7") == ("train", [str(training), "--out", "o"])
    assert call_of("fashion-tiny", []) == ("train", ["fashion-tiny"])
    assert call_of("evaluate", ["run"]) == ("evaluate", ["run"])
    with pytest.raises(UsageError, match="is none of a dataset"):
        call_of(str(neither), [])
    with pytest.raises(UsageError, match=r"'demo': cannot be submitted; choose one of train.*fashion-tiny.*nightly"):
        call_of("demo", [])


def test_options_may_follow_a_spec() -> None:
    """`submit SPEC --address URL -- ARGUMENTS`, the words behind "--" being the job's."""
    command = cli.commands["submit"]
    for args in (
        ["nightly", "--address", "http://h:1", "--run-id", "a", "--", "--run-id", "b"],
        ["--address", "http://h:1", "--run-id", "a", "nightly", "--run-id", "b"],
    ):
        with click.Context(cli, **cli.context_settings) as group:
            params = command.make_context("submit", args, parent=group).params
        assert (params["command"], params["arguments"]) == ("nightly", ("--run-id", "b"))
        assert (params["address"], params["run_id"]) == ("http://h:1", "a")


def test_an_old_python_is_told_so() -> None:
    """Code that was sent along meets whatever Python the cluster has."""
    code = "import sys; sys.version_info = (3, 9, 2); import genworker.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("genworker needs Python 3.11 or newer")


def test_a_spec_outside_the_working_directory_is_refused(spec: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UsageError, match="lies outside --working-dir"):
        Request("train", [str(spec)], working_dir=other).check()


@pytest.mark.parametrize("flags", [["--address", "head:8265"], ["--address", "http://h:1", "--env", "A"]])
def test_usage_errors_end_with_two(flags: list[str]) -> None:
    result = CliRunner().invoke(cli, ["submit", *flags, "train", "fashion-tiny"])
    assert result.exit_code == 2
    assert "write it as" in result.output
