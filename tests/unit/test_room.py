"""Nodes that come and go during a training run: what is lost is waited for, with a message, and what is gained is used."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import pytest

from genworker import cluster
from genworker.errors import ClusterError
from genworker.training import board as boards
from genworker.training import room
from genworker.training.board import Board
from genworker.training.fit import PLACE_SECONDS_VARIABLE, failure_limits, place_seconds
from genworker.training.room import Room
from genworker.training.spec import ResourceSpec

if TYPE_CHECKING:
    from collections.abc import Callable


class Nodes:
    """A cluster with room for ``fits`` workers, and a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
        self.fits, self.now, self.waits = fits, 1_000.0, list[float]()
        monkeypatch.setattr(cluster, "room", lambda _options: self.fits)
        monkeypatch.setattr(cluster, "describe", lambda _options: "each needs 1 CPU")
        monkeypatch.setattr(cluster, "placement_group", lambda *_args, **_options: None)
        for module in (room, cluster, boards):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.waits and self.now >= self.waits[0]:
            self.waits.clear()
            self.fits += 1

    def watched(self, workers: Any, on_event: Callable[[str], None] = lambda _text: None) -> Room:
        """What a run of these ``workers`` that waits for a minute makes of it."""
        asked = resources(workers)
        wait = functools.partial(
            cluster.await_workers,
            asked.fewest_workers,
            {"num_cpus": 1, "num_gpus": 0},
            wait_seconds=asked.wait_seconds,
            on_event=on_event,
        )
        return Room(asked, lambda: self.fits, wait, lambda: "each needs 1 CPU", on_event)

    def look(self, watched: Room, num_workers: int, seconds: float, board: Board | None = None) -> list[int]:
        """What is answered, other than 0, when the run is looked after for so long, whose places are as ``board`` knows."""
        answers, end = [], self.now + seconds
        while self.now < end:
            answers.append(watched.look(num_workers, board.read().seconds_without_places if board else 0.0))
            self.now += 0.5
        return [answer for answer in answers if answer]


def resources(workers: Any) -> ResourceSpec:
    return ResourceSpec.parse({"workers": workers, "wait_seconds": 60}, origin="test")


def test_lost_nodes_are_waited_for_and_then_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose fewest workers have no place says so, goes on when the place comes back, and ends when it does not."""
    events: list[str] = []
    nodes = Nodes(monkeypatch, fits=2)
    watched = nodes.watched(2, events.append)
    assert not nodes.look(watched, 2, seconds=600)
    nodes.fits = 1
    nodes.look(watched, 2, seconds=10)
    assert not events  # a node that is back at once is not worth a word
    nodes.waits.append(nodes.now + 40)
    nodes.look(watched, 2, seconds=60)
    assert nodes.fits == 2
    assert (
        "waiting for the cluster: 2 workers were asked for, each needs 1 CPU, enough for 1; gives up in 60 s" in events
    )
    nodes.fits = 1
    with pytest.raises(
        ClusterError, match=r"2 workers were asked for.*enough for 1; waited 60 s.*run the same command"
    ):
        nodes.look(watched, 2, seconds=100)


@pytest.mark.parametrize("lost", [False, True])
def test_an_elastic_run_whose_nodes_others_use_says_so_and_ends(monkeypatch: pytest.MonkeyPatch, *, lost: bool) -> None:
    """From the start or after a loss: Ray Train asks every few seconds without an end, the room tells of it and ends it."""
    events: list[str] = []
    nodes, board = Nodes(monkeypatch, fits=2), Board()
    watched = nodes.watched([1, 2], events.append)
    board.meet(None)
    if lost:
        board.turn("RunningState")
        assert not nodes.look(watched, 2, 600, board)
        board.turn("RestartingState")

    def ask() -> None:
        for _ in range(100):
            board.turn("SchedulingState")
            nodes.look(watched, 2 if lost else 0, 5, board)
            board.turn("ReschedulingState")

    with pytest.raises(
        ClusterError, match=r"1 workers were.*1 CPU, enough for 2, but other work uses it; waited 6\d s"
    ):
        ask()
    assert ["other work uses it; gives up in " in event for event in events] == [True] * 3


def test_workers_that_start_slowly_have_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was waited for counts up to when places were asked for; a start, a stop and a fixed size are no wait for them."""
    nodes, board = Nodes(monkeypatch, fits=2), Board()
    board.meet(None)
    nodes.now += 40
    board.turn("SchedulingState")
    nodes.look(nodes.watched([1, 2]), 0, 600, board)
    assert board.read().seconds_without_places == 40
    for state in ("RunningState", "PreemptingState", "ShuttingDownState"):
        board.turn(state)
        nodes.now += 100
        assert board.read().seconds_without_places == 0
    board.turn("RestartingState")
    assert [news.kind for news in board.read().events] == ["worker_lost"]
    nodes.look(nodes.watched(2), 2, 600, board)  # Ray Train gives up by itself


def test_room_for_more_workers_is_told_once_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that stay for a minute are worth a restart, up to the most workers, and one attempt finds out if they are free."""
    nodes = Nodes(monkeypatch, fits=2)
    watched = nodes.watched([1, 4])
    assert not nodes.look(watched, 2, seconds=300)
    nodes.fits = 3
    assert not nodes.look(watched, 2, seconds=50)
    nodes.fits = 9
    assert not nodes.look(watched, 2, seconds=50)
    assert nodes.look(watched, 2, seconds=300) == [4]
    assert not nodes.look(watched, 4, seconds=300)
    nodes.fits = 1
    assert not nodes.look(watched, 1, seconds=300)
    nodes.fits = 4
    assert nodes.look(watched, 1, seconds=300) == [4]
    assert not nodes.look(watched, 0, seconds=300)  # no group has started yet
    nodes.fits = 3
    nodes.look(watched, 3, seconds=10)
    watched.offer_nothing()  # one of the three will go away, and two go on
    assert not nodes.look(watched, 2, seconds=300)
    nodes.fits = 2
    assert not nodes.look(watched, 2, seconds=300)
    nodes.fits = 3
    assert nodes.look(watched, 2, seconds=300) == [3]


def test_ray_train_gives_up_on_places_that_it_does_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed group waits as long as the spec says, a bounded number of times; an elastic one asks anew every few seconds."""
    monkeypatch.delenv(PLACE_SECONDS_VARIABLE, raising=False)
    assert failure_limits(resources(2)) == {"max_failures": 3, "controller_failure_limit": 3}
    assert failure_limits(resources([1, 2]))["controller_failure_limit"] == -1
    for workers, seconds in ((2, "60"), ([1, 2], "5")):
        with place_seconds(resources(workers)):
            assert os.environ[PLACE_SECONDS_VARIABLE] == seconds
    assert PLACE_SECONDS_VARIABLE not in os.environ
    monkeypatch.setenv(PLACE_SECONDS_VARIABLE, "7")
    with place_seconds(resources(2)):
        assert os.environ[PLACE_SECONDS_VARIABLE] == "7"


def test_the_board_lets_a_resized_run_go_on() -> None:
    """The wish to stop is taken back for the next workers, whose number the board knows."""
    board = Board()
    board.start(2, 0)
    board.request_stop()
    assert board.stop_requested()
    board.go_on()
    assert not board.stop_requested()
    assert board.read().num_workers == 2
