"""One start of Ray Train: the workers of `genworker.training.worker`, what is asked for them, and what happens after a loss.

In: a spec, the run's URL, the board. Out: what rank 0 returned. Ray Train itself stores nothing that a resume needs.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genworker import cluster
from genworker.training.room import LEAST_PLACE_SECONDS
from genworker.training.spec import ResourceSpec, TrainSpec

PLACE_SECONDS_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_PLACE_SECONDS = 5.0  # of an elastic group


def fit(spec: TrainSpec, url: str, board: Any) -> Any:
    """Run Ray Train until its workers have ended, and return what rank 0 returned.

    Args:
        spec: of the run.
        url: of the run, absolute: workers have working directories of their own.
        board: the actor that `genworker.training.worker.work` reports to.

    Raises:
        ray.train.TrainingFailedError: workers were lost too often, or got no places in time.
    """
    import ray.train
    import ray.train.torch

    from genworker.training.controller import Introduction
    from genworker.training.network import TorchConfig
    from genworker.training.worker import work

    resources = spec.resources
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"spec": spec.model_dump(mode="json"), "url": url, "board": board},
        torch_config=TorchConfig(timeout_s=max(1, round(resources.collective_timeout_seconds))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
            label_selector=dict(resources.node_labels) or None,
            elastic_resize_monitor_interval_s=math.inf,  # see `genworker.training.room`
        ),
        # Ray Train wants a place of its own; it holds nothing that a resume needs.
        run_config=ray.train.RunConfig(
            name=f"genworker-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(tempfile.gettempdir()) / "genworker-ray-train"),
            failure_config=ray.train.FailureConfig(**failure_limits(resources)),
            callbacks=[Introduction(board)],
            worker_runtime_env={"env_vars": cluster.ALLOCATOR_ENV},
        ),
    )
    with place_seconds(resources):
        return trainer.fit().return_value


def failure_limits(resources: ResourceSpec) -> dict[str, int]:
    """How often Ray Train replaces what was lost, and how often it asks again for places that it did not get.

    An elastic group asks every few seconds, for as many as there are; how long that goes on, `genworker.training.room.Room`
    decides.
    """
    asks = -1 if isinstance(resources.workers, tuple) else resources.max_failures
    return {"max_failures": resources.max_failures, "controller_failure_limit": asks}


@contextlib.contextmanager
def place_seconds(resources: ResourceSpec) -> Iterator[None]:
    """Tell Ray Train, inside the block, how long to wait for the places of a group; what the user has set stays.

    Just after a node was lost it is still counted, and with a long wait a smaller group would start late. A group of a fixed
    size has nothing else to try, so it waits for as long as a run waits for nodes.
    """
    if PLACE_SECONDS_VARIABLE in os.environ:
        yield
        return
    seconds = (
        _PLACE_SECONDS if isinstance(resources.workers, tuple) else max(LEAST_PLACE_SECONDS, resources.wait_seconds)
    )
    os.environ[PLACE_SECONDS_VARIABLE] = f"{seconds:g}"
    try:
        yield
    finally:
        del os.environ[PLACE_SECONDS_VARIABLE]
