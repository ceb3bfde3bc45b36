"""Training on a Ray cluster: the loop of `genworker.training.loop` in every worker of a Ray Train run.

In: a spec and a URL. Out: checkpoints, metrics and a bundle under that URL. Checkpoints are single objects in our own store
(one create step, checksummed), so Ray Train's directory uploads, which have neither, are not used. Lost workers are replaced,
by as many as the cluster has (`resources.workers: [min, max]`), and go on from the newest checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray

from genworker import cluster
from genworker.errors import ClusterError, GenworkerError, SourceError, StoreError, TrainingError
from genworker.sources import open_source
from genworker.stores import Store, open_store
from genworker.training import best, checkpoint, preflight, record
from genworker.training.bill import Bill
from genworker.training.board import Board, Standing
from genworker.training.callbacks.group import CallbackGroup
from genworker.training.evaluator import Evaluator
from genworker.training.fit import fit
from genworker.training.hooks import Metrics, News, TrainResult
from genworker.training.room import Room
from genworker.training.spec import ResourceSpec, TrainSpec

_POLL_SECONDS = 0.5
END_SECONDS = 10.0  # after `ResourceSpec.stop_grace_seconds`, for a run that had to be killed


def train(
    spec: TrainSpec,
    url: str,
    on_progress: Callable[[Metrics], None] = lambda _metrics: None,
    on_event: Callable[[str], None] = lambda _text: None,
) -> TrainResult:
    """Train ``spec`` into ``url`` on a Ray cluster, from the newest checkpoint if there is one.

    KeyboardInterrupt makes the workers save a checkpoint and end, in `ResourceSpec.stop_grace_seconds`, and is then raised
    again. Nodes that Ray says will go away make them save too, and so do nodes that stay for a minute and have room for more
    workers; the run goes on with what there is.

    Raises:
        UsageError: the networks that the spec asks for cannot be built for its data.
        ClusterError: the cluster has fewer resources than the spec asks for, from the start or after a loss.
        SourceError, CheckpointError, TrainingError, StoreError: as the loop raises them.
    """
    source = open_source(spec.data)
    for remark in source.remarks:  # said here, once, and not by each worker that opens the data
        on_event(News(remark, "data"))
    preflight.check(spec, source)  # what is wrong should cost no cluster start, and leave the URL free
    evaluated = spec
    if (problem := preflight.too_few_to_compare(spec, source)) is not None:
        on_event(News(problem, "evaluation"))
        evaluated = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"num_samples": 0})})
    store = open_store(url)
    record.claim(spec, store)
    with cluster.connect() as can_grow, Bill(spec, on_event) as bill:
        room = _room(spec.resources, spec.resources.wait_seconds if can_grow else 0.0, on_event)
        board = cluster.beside_driver(Board).remote()
        evaluator = Evaluator(evaluated, store.url, on_event, measured=record.last_evaluated(store))
        newest = next(iter(checkpoint.keys(store)), None)
        follower = _Follower(board, evaluator, room, on_progress, on_event, bill=bill, newest=newest)
        while True:
            room.await_fewest()
            outcome = _run(spec, store.url, board, follower)
            standing: Standing = ray.get(board.read.remote())
            if standing.error is not None or not _goes_on(outcome, resized=follower.resized):
                break
            if outcome["value"]["preempted"]:
                room.offer_nothing()
            ray.get(board.go_on.remote())
        if standing.error is None and "value" in outcome:
            result = TrainResult(**outcome["value"]["result"])
            measured = evaluator.finish(standing.last_checkpoint if result.finished else None)
            if result.finished:
                best.note_evaluation(store)
            _tell(spec, store, measured, result.evaluations_told, on_event)
    if standing.error is not None:
        raise _with_last_checkpoint(*standing.error, standing.last_checkpoint)
    if "error" in outcome:
        raise TrainingError(_explain(outcome["error"], standing.last_checkpoint)) from outcome["error"]
    return TrainResult(**outcome["value"]["result"])


def _room(resources: ResourceSpec, wait_seconds: float, on_event: Callable[[str], None]) -> Room:
    needs = cluster.actor_options(
        num_cpus=resources.cpus_per_worker, num_gpus=int(resources.use_gpu), node_labels=resources.node_labels
    )
    return Room(
        resources,
        lambda: cluster.room(needs),
        lambda: cluster.await_workers(
            resources.fewest_workers,
            needs,
            wait_seconds=wait_seconds,
            on_event=lambda text: on_event(News(text, "waiting")),
        ),
        lambda: cluster.describe(needs),
        on_event,
    )


def _goes_on(outcome: dict[str, Any], *, resized: bool) -> bool:
    """Whether the workers ended only to be started again: their nodes will go away, or there is room for more of them."""
    value = outcome.get("value")
    return value is not None and (value["preempted"] or (resized and not value["result"]["finished"]))


def _tell(spec: TrainSpec, store: Store, measured: list[str], told: int, on_event: Callable[[str], None]) -> None:
    """Hand evaluations that ended after training to the callbacks, which rank 0 cannot do any more; not those it ``told``."""
    measured = [key for key in measured if checkpoint.images_of(key) > told]
    if not measured:
        return
    callbacks = CallbackGroup(spec.training.callbacks, store, spec, checkpoint.images_of(measured[-1]), on_event)
    keys = {checkpoint.images_of(key) for key in measured}
    for line in record.read_evaluations(store):
        if line["images_seen"] in keys:
            callbacks.on_evaluation(line["images_seen"], line["metrics"])
    callbacks.close()


class _Follower:
    """Shows what the board says, each thing once, and minds the room.

    Attributes:
        resized: whether the workers that were followed last were asked to end, because there is room for more.
    """

    def __init__(
        self,
        board: Any,
        evaluator: Evaluator,
        room: Room,
        on_progress: Callable[[Metrics], None],
        on_event: Callable[[str], None],
        *,
        bill: Bill,
        newest: str | None,
    ) -> None:
        """``newest`` is the checkpoint that was there before, which is no news."""
        self.resized = False
        self._board, self._evaluator, self._room, self._bill = board, evaluator, room, bill
        self._on_progress, self._on_event = on_progress, on_event
        self._shown: Metrics = {}
        self._num_told, self._newest = 0, newest

    def follow(self, ended: threading.Event) -> None:
        """Show news until ``ended`` is set. Raises ClusterError where lost nodes are not replaced, or others use all."""
        self.resized, running = False, True
        while running:
            running = not ended.is_set()  # read once more after the end
            standing: Standing = ray.get(self._board.read.remote())
            for text in standing.events[self._num_told :]:
                self._on_event(text)
            self._num_told = len(standing.events)
            self._tell_checkpoint(standing.last_checkpoint)
            if standing.metrics != self._shown:
                self._shown = standing.metrics
                self._on_progress(standing.metrics)
            self._bill.look(standing.num_workers if running else 0, standing.metrics)
            self._evaluator.offer(standing.last_checkpoint)
            if running:
                self._mind_the_room(standing.num_workers, standing.seconds_without_places)
            ended.wait(_POLL_SECONDS)

    def _tell_checkpoint(self, key: str | None) -> None:
        if key not in (None, self._newest):
            images_seen = checkpoint.images_of(key)
            news = News(f"the newest checkpoint is {key}", "checkpoint", "info", quiet=True, images_seen=images_seen)
            self._on_event(news)
        self._newest = key

    def _mind_the_room(self, num_workers: int, seconds_without_places: float) -> None:
        more = self._room.look(num_workers, seconds_without_places)
        if more and not self.resized:
            self.resized = True
            text = f"there is room for {more} workers instead of {num_workers}: saving, and going on with more"
            self._on_event(News(text, "room", "info", workers=more))
            ray.get(self._board.request_stop.remote())


def _run(spec: TrainSpec, url: str, board: Any, follower: _Follower) -> dict[str, Any]:
    """One Ray Train run from start to end; ``value`` is what rank 0 returned, ``error`` what Ray Train raised."""
    outcome: dict[str, Any] = {}
    # An event, not Thread.join: a signal that interrupts a join makes Python 3.11 take the thread for ended.
    ended = threading.Event()

    def work() -> None:
        try:
            outcome["value"] = fit(spec, url, board)
        except Exception as err:
            outcome["error"] = err
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        follower.follow(ended)
    except KeyboardInterrupt:
        ray.get(board.request_stop.remote())
        if not ended.wait(spec.resources.stop_grace_seconds):
            _give_up(board, ended)
        raise
    except ClusterError:
        _give_up(board, ended)
        raise
    return outcome


def _give_up(board: Any, ended: threading.Event) -> None:
    """End a Ray Train run that may wait forever; a thread that still waits for it would end this process with Ray."""
    controller = ray.get(board.controller.remote())
    if controller is not None:
        ray.kill(controller)
        ended.wait(END_SECONDS)


def _with_last_checkpoint(kind: type[GenworkerError], message: str, last: str | None) -> GenworkerError:
    if last is not None and issubclass(kind, SourceError | StoreError):
        message = f"{message}; the newest checkpoint is {last}: run the same command again to go on from there"
    return kind(message)


def _explain(error: Exception, last: str | None) -> str:
    """Which ranks were lost and why, in a few lines; Ray's own message holds every rank's traceback."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    where = f"from {last}" if last else "from the newest checkpoint"
    if not failures:
        cause = getattr(error, "controller_failure", error)
        return f"training stopped: {_first_line(cause)}\nlook at the nodes, then run the same command again to go on {where}"
    lines = [f"  rank {rank}: {_first_line(failure)}" for rank, failure in sorted(failures.items())]
    seen = "\n".join(["workers were lost:", *lines])
    return (
        f"{seen}\nwhat was lost was replaced resources.max_failures times; look at the nodes, then run the same command again "
        f"to go on {where}"
    )


def _first_line(error: BaseException) -> str:
    """The type and the first line of an error; of Ray's wrappers, those of its cause."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0] if text else ''}"[:400]
