"""The doctor's checks against real stores and this machine: ok where all is well, and the fix where it is not."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING

import pytest
import ray
from click.testing import CliRunner
from ray.exceptions import AuthenticationError

from genworker.cli import cli
from genworker.doctor.cluster import check_cluster
from genworker.doctor.machine import check_machine
from genworker.doctor.nodes import compare
from genworker.doctor.storage import check_store
from genworker.errors import StoreAccessError
from genworker.stores import open_store
from genworker.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from genworker.doctor.base import Finding
    from genworker.stores import ObjectInfo
    from tests.servers import S3Server


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    found = list(findings)
    assert all(bool(finding.fix) == (finding.verdict != "ok") for finding in found), found
    return {finding.name: finding.verdict for finding in found}


def test_this_machine_is_well() -> None:
    """The pinned libraries are there in their versions, or no test would mean much."""
    seen = verdicts(check_machine())
    assert {seen[name] for name in ("torch", "ray", "pyarrow", "imagecodecs")} == {"ok"}
    assert "fail" not in seen.values()


def test_a_store_that_does_all(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert set(verdicts(check_store(store)).values()) <= {"ok", "warn"}
    assert verdicts(check_store(store))["create-only put"] == "ok"
    assert list(store.list()) == []


@pytest.mark.parametrize(("name", "conditional"), [("moto", "ok"), ("rclone", "warn")])
def test_s3_servers(
    request: pytest.FixtureRequest, point_at: Callable[[S3Server], None], name: str, conditional: str
) -> None:
    """A server that ignores the condition of a put is told apart from one that honours it."""
    server: S3Server = request.getfixturevalue(name)
    point_at(server)
    store = open_store(f"s3://{server.new_bucket()}/set")
    seen = verdicts(check_store(store))
    assert seen == dict.fromkeys(("write", "read", "clock", "delete"), "ok") | {"create-only put": conditional}
    assert list(store.list()) == []


def test_a_missing_bucket_is_one_failure(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    point_at(moto)
    assert verdicts(check_store(open_store("s3://no-such-bucket-here/set"))) == {"write": "fail"}


class BrokenStore(MemoryStore):
    """A store with a clock that is wrong, a cache that is stale, a role that may not delete."""

    skew_seconds = 0.0
    stale = may_not_delete = False

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        info = super().put(key, data, overwrite=overwrite)
        return dataclasses.replace(info, modified=info.modified + self.skew_seconds)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(()) if self.stale else super().list(prefix)

    def delete(self, key: str) -> None:
        if self.may_not_delete:
            raise StoreAccessError(f"delete {key!r}: access denied")
        super().delete(key)


@pytest.mark.parametrize(
    ("trouble", "check", "verdict"),
    [
        ({"skew_seconds": 60.0}, "clock", "warn"),
        ({"skew_seconds": -3_600.0}, "clock", "fail"),
        ({"stale": True}, "read", "fail"),
        ({"may_not_delete": True}, "delete", "warn"),
    ],
)
def test_a_store_in_trouble(trouble: dict[str, object], check: str, verdict: str) -> None:
    store = BrokenStore(f"memory://{uuid.uuid4().hex}")
    vars(store).update(trouble)
    seen = verdicts(check_store(store))
    assert seen.pop(check) == verdict
    assert set(seen.values()) == {"ok"}


@pytest.mark.parametrize(
    ("variables", "verdict"),
    [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "disabled"}, "warn"),
        ({"RAY_AUTH_MODE": "token"}, "ok"),  # a cluster that is started here makes its own
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "ok"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "fail"),
    ],
)
def test_tokens(no_token: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], verdict: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert verdicts(check_cluster()) == {"ray token": verdict, "ray": "ok"}


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable of Ray is set, and HOME is an empty folder, which is given."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_cluster_that_wants_a_token_gets_none(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What joining says is a finding, however Ray came to say it."""

    def refuse(**_options: object) -> None:
        raise AuthenticationError("no authentication token was found")

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ADDRESS", "the-head")  # no port, so that nobody is asked whether it answers
    monkeypatch.setattr(ray, "init", refuse)
    token, joined = check_cluster()
    assert (token.verdict, joined.verdict) == ("fail", "fail")
    assert "a token is wanted" in joined.seen
    assert "RAY_AUTH_MODE is token, RAY_AUTH_TOKEN_PATH is not set" in joined.seen


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_token_file_that_others_can_read(no_token: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
    """Wherever it lies: where a variable says, or where Ray looks without one."""
    token = no_token / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("x")
    if by_variable:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(0o644)
    assert verdicts(check_cluster())["ray token"] == "warn"
    token.chmod(0o600)
    assert verdicts(check_cluster())["ray token"] == "ok"


SOFTWARE = {"genworker": "1.0", "ray": "2.60.0", "torch": "2.13.0", "device": "cpu/AVX512"}


@pytest.mark.parametrize(
    ("change", "found", "word"),
    [
        ({}, {"nodes": "ok"}, "torch 2.13.0, device cpu/AVX512"),
        ({"torch": "2.12.0"}, {"node torch": "warn"}, "2.13.0 here; 2.12.0 on b; 2.13.0 on a"),
        ({"genworker": "0.9"}, {"node genworker": "warn"}, "0.9 on b"),
        ({"device": "cpu/AVX2"}, {"node devices": "warn"}, "cpu/AVX2 on b; cpu/AVX512 on a"),
    ],
)
def test_nodes_that_differ(change: dict[str, str], found: dict[str, str], word: str) -> None:
    """Versions from this machine's, processors from each other's, each with the nodes that have them."""
    findings = list(compare(SOFTWARE, {"a": SOFTWARE, "b": SOFTWARE | change}))
    assert verdicts(findings) == found
    assert word in findings[0].seen


def test_the_drivers_own_processor_does_not_count() -> None:
    assert verdicts(compare(SOFTWARE | {"device": "cpu/AVX2"}, {"a": SOFTWARE, "b": SOFTWARE})) == {"nodes": "ok"}


def test_a_mistyped_path_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    """Folders that the check had to make go with it, those that were there stay, also empty ones."""
    (tmp_path / "there").mkdir()
    seen = {finding.name: finding.seen for finding in check_store(open_store(str(tmp_path / "there" / "tpyo" / "set")))}
    assert "there is no such folder yet: it was made for this check, and is removed" in seen["write"]
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    seen = {finding.name: finding.seen for finding in check_store(open_store(str(tmp_path / "there")))}
    assert "no such folder" not in seen["write"]
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_the_command(tmp_path: Path) -> None:
    """One line per check; a failure is exit code 1."""
    run = CliRunner()
    fine = run.invoke(cli, ["doctor", str(tmp_path)])
    assert fine.exit_code == 0, fine.output
    assert "create-only put" in fine.output
    (tmp_path / "file").write_text("x")
    bad = run.invoke(cli, ["doctor", str(tmp_path / "file"), "--json"])
    assert bad.exit_code == 1
    assert [item["name"] for item in json.loads(bad.output) if item["verdict"] == "fail"] == ["write"]
