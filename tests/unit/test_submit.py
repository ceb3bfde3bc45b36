"""What `genworker submit` sends: ids that follow from the content, files that go along, and no secrets."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from genworker.cli import cli
from genworker.errors import UsageError
from genworker.submit import Request


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


def test_a_working_directory_is_sent_as_it_is(spec: Path) -> None:
    folder = spec.parent.parent
    with Request("train", [str(spec)], working_dir=folder).packed() as (entrypoint, environment):
        assert environment["working_dir"] == str(folder)
        assert shlex.split(entrypoint)[4] == "specs/mine.yaml"


def test_names_of_presets_are_left_alone() -> None:
    with Request("train", ["fashion-tiny", "--out", "x"]).packed() as (entrypoint, environment):
        assert entrypoint == "python -m genworker.cli train fashion-tiny --out x"
        assert "working_dir" not in environment


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("demo", []), "cannot be submitted; choose one of train"),
        (Request("train", [], run_id="a b"), "--run-id 'a b'"),
        (Request("train", [], variables={"AWS_SECRET_ACCESS_KEY": "x"}), "--env AWS_SECRET_ACCESS_KEY"),
        (Request("train", [], variables={"hf_token": "x"}), "is shown to whoever sees"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request_.check()


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
