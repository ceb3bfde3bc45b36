"""One local Ray cluster for all tests of this folder, and one undisturbed training run for those that compare with it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import pytest

from genworker.training import trainer
from tests.conftest import set_environment
from tests.ray.runs import IMAGES, spec_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import S3Server

CLUSTER_CPUS = 4


@pytest.fixture(scope="package")
def ray_cluster(moto: S3Server) -> Iterator[int]:
    """A local Ray cluster whose workers' S3 is moto; gives the number of CPUs that it declares, whatever there are."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers inherit the environment that the cluster was started in.
        set_environment(patch, moto)
        ray.init(
            address="local",
            num_cpus=CLUSTER_CPUS,
            num_gpus=1,  # to place actors by; whether torch finds one is another matter
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # What a job exports is waited for; Ray's own interval is ten seconds.
            _system_config={"metrics_report_interval_ms": 3_000},
        )
    yield CLUSTER_CPUS
    ray.shutdown()


@pytest.fixture(scope="package")
def finished(ray_cluster: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of an undisturbed run on two workers, named relative to the driver's working directory; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        result = trainer.train(spec_for(), "run")
    assert (result.finished, result.images_seen) == (True, IMAGES)
    return str(folder / "run")
