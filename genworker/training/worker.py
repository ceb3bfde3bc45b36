"""What runs in every Ray Train worker: the loop of `genworker.training.loop`, told of stops and of nodes that will go away.

In: the spec, the run's URL and the board. Out: how the loop ended on this rank. Ray Train starts it again after a loss, and
it goes on from the newest checkpoint by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from genworker.errors import DivergedError, GenworkerError
from genworker.sources import open_source
from genworker.stores import open_store
from genworker.training import checkpoint, loop
from genworker.training.hooks import Hooks, Metrics, News
from genworker.training.spec import TrainSpec

_STOP_POLL_SECONDS = 0.5
_NOTICE_SECONDS = 5.0  # a spot instance may be told as little as half a minute before it goes


class Notices:
    """Asks Ray now and then whether nodes of the run will go away; see `should_ask` and `ask` of `Hooks`.

    Attributes:
        seen: whether they will; once it is set, nothing more is asked for.
    """

    def __init__(self, rank: int, on_notice: Callable[[str], None]) -> None:
        """Tell ``on_notice`` in a line, once on every rank. Only rank 0 looks at the clock."""
        self.seen = False
        self._rank, self._on_notice = rank, on_notice
        self._asked_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to ask again."""
        return self._rank == 0 and not self.seen and time.monotonic() - self._asked_at >= _NOTICE_SECONDS

    def ask(self) -> None:
        """Ask, together with all other ranks: it is a barrier."""
        if self.seen:
            return
        notice = ray.train.get_preemption_info()
        self._asked_at = time.monotonic()
        if notice is not None:
            self.seen = True
            nodes = ", ".join(node[:12] for node in notice.preempted_node_ids)
            self._on_notice(News(f"nodes {nodes} will go away: saving, and going on without them", "preemption"))


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

    def watch_board() -> None:
        while not ended.wait(_STOP_POLL_SECONDS):
            if ray.get(board.stop_requested.remote()):
                stop.set()

    # Not ray.train.report: it is a barrier that waits for the controller's next poll, measured at 1.5-2.5 s a call.
    def tell(method: Any, news: object) -> None:
        if rank == 0:
            ray.get(method.remote(news))

    def on_report(metrics: Metrics) -> None:
        tell(board.report, metrics)
        notices.ask()  # all ranks are here together anyway

    def on_notice(text: str) -> None:
        stop.set()
        tell(board.event, text)

    notices = Notices(rank, on_notice)
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
            local_size=context.get_local_world_size(),
            hooks=Hooks(
                on_report=on_report,
                on_event=lambda text: tell(board.event, text),
                on_own_event=lambda text: ray.get(board.event.remote(text)),
                on_checkpoint=lambda key: tell(board.stored, key),
                should_stop=stop.is_set,
                should_ask=notices.due,
                ask=notices.ask,
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
    return {"result": vars(result), "preempted": notices.seen}
