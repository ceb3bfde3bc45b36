"""What several test folders share: one S3 server of each kind per run, and a tiny bundle.

Ray reads its authentication mode when it is imported, so the environment is set here, before any test module is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.servers import S3Server, moto_server, rclone_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdist.remote import Producer
    from xdist.scheduler import Scheduling

os.environ.pop("RAY_ADDRESS", None)
# Without a mode of its own, ray.init writes a token below HOME.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # as genworker starts Ray: no workers that nobody asked for
}
# torch reads it when first imported. Tiny networks gain nothing from threads, and threads wait for cores that others use:
# a training run of the unit tests takes 0.3 s with one, and up to a minute with two on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_FIRST = ("ray", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


class _ByFixtures(LoadScopeScheduling):
    """Keeps in one process what shares a cluster or a module's fixtures: tests/ray, and each file elsewhere."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "tests/ray" if path.startswith("tests/ray/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """How ``pytest -n 2`` gives out tests."""
    config.option.loadscopereorder = False  # keeps the order above
    return _ByFixtures(config, log)


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
    return lambda server: set_environment(monkeypatch, server)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of an untrained generator of 28x28x1 images in ten classes; the same weights in every run."""
    from tests.fakes.bundle import save_bundle

    return save_bundle(str(tmp_path_factory.mktemp("bundle")))


def set_environment(patch: pytest.MonkeyPatch, server: S3Server) -> None:
    """Make a server the one that the environment names."""
    for name in os.environ:
        if name.startswith("AWS_"):
            patch.delenv(name)
    for name, value in server.environment.items():
        patch.setenv(name, value)
