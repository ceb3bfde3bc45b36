"""What several test folders share: one local Ray cluster and one S3 server of each kind per run, and a tiny bundle.

Ray reads its authentication mode when it is imported, so the environment is set here, before any test module is.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from tests.servers import S3Server, moto_server, rclone_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ.pop("RAY_ADDRESS", None)
# Without a mode of its own, ray.init writes a token below HOME.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# torch reads it when first imported. Tiny networks gain nothing from threads, and threads wait for cores that others use:
# a training run of the unit tests takes 0.3 s with one, and up to a minute with two on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CLUSTER_CPUS = 4
LONGEST_FIRST = ("ray", "e2e")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``pytest -n``, keep in one process what shares a cluster or a module's fixtures; begin with the longest."""
    for item in items:
        folder = item.path.parent.name
        group = folder if folder == "ray" else f"{folder}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


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
    return lambda server: _set_environment(monkeypatch, server)


@pytest.fixture(scope="session")
def ray_cluster(moto: S3Server) -> Iterator[int]:
    """A local Ray cluster whose workers' S3 is moto; gives the number of CPUs that it declares, whatever there are."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers inherit the environment that the cluster was started in.
        _set_environment(patch, moto)
        ray.init(
            address="local",
            num_cpus=CLUSTER_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"metrics_report_interval_ms": 1_000},
        )
    yield CLUSTER_CPUS
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of an untrained generator of 28x28x1 images in ten classes; the same weights in every run."""
    from tests.fakes.bundle import save_bundle

    return save_bundle(str(tmp_path_factory.mktemp("bundle")))


def _set_environment(patch: pytest.MonkeyPatch, server: S3Server) -> None:
    for name in os.environ:
        if name.startswith("AWS_"):
            patch.delenv(name)
    for name, value in server.environment.items():
        patch.setenv(name, value)
