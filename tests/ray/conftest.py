"""One undisturbed training run for all tests that compare with it."""

from __future__ import annotations

import contextlib

import pytest

from genworker.training import trainer
from tests.ray.runs import IMAGES, spec_for


@pytest.fixture(scope="session")
def finished(ray_cluster: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of an undisturbed run on two workers, named relative to the driver's working directory; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        result = trainer.train(spec_for(), "run")
    assert (result.finished, result.images_seen) == (True, IMAGES)
    return str(folder / "run")
