"""Fixtures of the contract tests: S3 servers, one process each per test run, and an environment that points at one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.servers import S3Server, moto_server, rclone_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that honours conditional puts and takes any credentials."""
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that checks credentials and ignores the condition of a put."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server], None]:
    """A function that makes a server the one that the environment of this test names."""

    def point(server: S3Server) -> None:
        for name in os.environ:
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

    return point
