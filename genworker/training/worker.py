"""What runs in every Ray Train worker: the loop of `genworker.training.loop`, told of stops and of nodes that will go away.

In: the spec, the run's URL and the board. Out: how the loop ended on this rank. Ray Train starts it again after a loss, and
it goes on from the newest checkpoint by itself.
"""

from __future__ import annotations

import threading
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from genworker.errors import DivergedError, GenworkerError
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import checkpoint, loop
from genworker.training.hooks import Hooks
from genworker.training.record import Metrics
from genworker.training.spec import TrainSpec

_STOP_POLL_SECONDS = 0.5


def work(config: dict[str, Any]) -> dict[str, Any] | None:
    """Train as one rank; returns how the run ended, or None where it has failed and the board knows why.

    Raises:
        GenworkerError: as the loop raises them; the board keeps the first, and later starts end at once.
    """
    spec = TrainSpec.model_validate(config["spec"])
    board = config["board"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    if ray.get(board.failed.remote()):
        return None
    # What the environment says is meant for one process of a machine, not for several that share its cores.
    torch.set_num_threads(spec.resources.cpus_per_worker)
    store = open_store(config["url"])
    if rank == 0:
        newest = max((checkpoint.images_of(key) for key in checkpoint.keys(store)), default=0)
        ray.get(board.start.remote(context.get_world_size(), newest))
    stop, ended = threading.Event(), threading.Event()
    preempted = threading.Event()

    def watch_board() -> None:
        while not ended.wait(_STOP_POLL_SECONDS):
            if ray.get(board.stop_requested.remote()):
                stop.set()

    # Not ray.train.report: it is a barrier that waits for the controller's next poll, measured at 1.5-2.5 s a call.
    def on_report(metrics: Metrics) -> None:
        if rank == 0:
            ray.get(board.report.remote(metrics))
        # A barrier too, but between the workers alone.
        if (notice := ray.train.get_preemption_info()) is not None and not preempted.is_set():
            preempted.set()
            stop.set()
            if rank == 0:
                nodes = ", ".join(node[:12] for node in notice.preempted_node_ids)
                ray.get(board.event.remote(f"nodes {nodes} will go away: saving, and going on without them"))

    def tell(method: Any, news: object) -> None:
        if rank == 0:
            ray.get(method.remote(news))

    if rank == 0:
        threading.Thread(target=watch_board, name="board", daemon=True).start()
    try:
        result = loop.train(
            spec,
            open_source(spec.data),
            store,
            rank=rank,
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
            hooks=Hooks(
                on_report=on_report,
                on_event=lambda text: tell(board.event, text),
                on_checkpoint=lambda key: tell(board.stored, key),
                should_stop=stop.is_set,
            ),
        )
    except DivergedError as err:
        tell(board.fail, err)  # rank 0's, which knows what was seen
        return None  # all ranks end here together, so that Ray Train has nothing to start again
    except GenworkerError as err:
        ray.get(board.fail.remote(err))
        raise
    finally:
        ended.set()
    return {"result": vars(result), "preempted": preempted.is_set()}
