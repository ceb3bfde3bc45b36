"""Training on a Ray cluster: the loop of `genworker.training.loop` in every worker of a Ray Train run.

In: a spec and a URL. Out: checkpoints, metrics and a bundle under that URL. Checkpoints are single objects in our own store
(one create step, checksummed), so Ray Train's directory uploads, which have neither, are not used.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from genworker import cluster
from genworker.errors import GenworkerError, TrainingError
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import loop, record
from genworker.training.loop import Hooks, TrainResult
from genworker.training.record import Metrics
from genworker.training.spec import TrainSpec

_POLL_SECONDS = 0.5
_STOP_GRACE_SECONDS = 30.0


class Board:
    """A tiny actor between workers and driver: the latest metrics out, the wish to stop in."""

    def __init__(self) -> None:
        self._latest: Metrics = {}
        self._stop = False
        self._events: list[str] = []
        self._error: tuple[type[GenworkerError], str] | None = None

    def report(self, metrics: Metrics) -> bool:
        """Take rank 0's metrics; returns whether the run should stop."""
        self._latest = metrics
        return self._stop

    def request_stop(self) -> None:
        """Make the next report return True."""
        self._stop = True

    def event(self, text: str) -> None:
        """Take a line for the driver to show."""
        self._events.append(text)

    def fail(self, error: GenworkerError) -> None:
        """Keep the first error of a worker, because Ray Train wraps it in text."""
        self._error = self._error or (type(error), str(error))

    def read(self) -> tuple[Metrics, list[str], tuple[type[GenworkerError], str] | None]:
        """The latest metrics, the events so far, and the error of a worker if there was one."""
        return self._latest, self._events, self._error


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in every Ray Train worker."""
    import ray.train
    import ray.train.torch

    spec = TrainSpec.model_validate(config["spec"])
    board = config["board"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    state = {"stop": False}

    # Not ray.train.report: it is a barrier that waits for the controller's next poll, measured at 1.5-2.5 s a call.
    def on_report(metrics: Metrics) -> None:
        if rank == 0:
            state["stop"] = ray.get(board.report.remote(metrics))

    def on_event(text: str) -> None:
        if rank == 0:
            ray.get(board.event.remote(text))

    try:
        result = loop.train(
            spec,
            open_source(spec.data),
            open_store(config["url"]),
            rank=rank,
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            hooks=Hooks(on_report, on_event, lambda: state["stop"]),
        )
    except GenworkerError as err:
        ray.get(board.fail.remote(err))
        raise
    return vars(result)


def train(
    spec: TrainSpec,
    url: str,
    on_progress: Callable[[Metrics], None] = lambda _metrics: None,
    on_event: Callable[[str], None] = lambda _text: None,
) -> TrainResult:
    """Train ``spec`` into ``url`` on a Ray cluster, from the newest checkpoint if there is one.

    KeyboardInterrupt makes the workers save a checkpoint and end, and is then raised again.

    Raises:
        ClusterError: the cluster has fewer resources than the spec asks for.
        SourceError, CheckpointError, TrainingError, StoreError: as the loop raises them.
    """
    open_source(spec.data)  # a wrong path should not cost a cluster start
    store = open_store(url)
    record.claim(spec, store)
    resources = spec.resources
    with cluster.connect():
        cluster.check_workers(resources.workers, resources.cpus_per_worker, use_gpu=resources.use_gpu)
        board = ray.remote(Board).options(num_cpus=0).remote()
        outcome: dict[str, Any] = {}
        fit = threading.Thread(target=_fit, args=(spec, store.url, board, outcome), daemon=True)
        fit.start()
        try:
            _follow(fit, board, on_progress, on_event)
        except KeyboardInterrupt:
            ray.get(board.request_stop.remote())
            fit.join(_STOP_GRACE_SECONDS)
            raise
        *_, error = ray.get(board.read.remote())
    if error is not None:
        kind, message = error
        raise kind(message)
    if "error" in outcome:
        raise TrainingError(
            f"training stopped: {outcome['error']}; run the same command again to go on from the newest checkpoint"
        ) from outcome["error"]
    return TrainResult(**outcome["result"])


def _follow(
    fit: threading.Thread, board: Any, on_progress: Callable[[Metrics], None], on_event: Callable[[str], None]
) -> None:
    shown: Metrics = {}
    num_told = 0
    running = True
    while running:
        running = fit.is_alive()  # read once more after the end
        metrics, events, _ = ray.get(board.read.remote())
        for text in events[num_told:]:
            on_event(text)
        num_told = len(events)
        if metrics != shown:
            shown = metrics
            on_progress(metrics)
        fit.join(_POLL_SECONDS)


def _fit(spec: TrainSpec, url: str, board: Any, outcome: dict[str, Any]) -> None:
    # The URL is absolute here: workers have working directories of their own.
    import ray.train
    import ray.train.torch

    resources = spec.resources
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"spec": spec.model_dump(mode="json"), "url": url, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker},
        ),
        # Ray Train wants a place of its own; it holds nothing that a resume needs.
        run_config=ray.train.RunConfig(
            name=f"genworker-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(tempfile.gettempdir()) / "genworker-ray-train"),
            worker_runtime_env={"env_vars": cluster.ALLOCATOR_ENV},
        ),
    )
    try:
        outcome["result"] = trainer.fit().return_value
    except Exception as err:
        outcome["error"] = err
