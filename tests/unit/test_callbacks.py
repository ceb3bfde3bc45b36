"""Callbacks as a group: training never waits for one, never dies of one, and the user is told of what failed, once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from genworker.errors import UsageError
from genworker.stores import open_store
from genworker.training import callbacks
from genworker.training.callbacks.group import CallbackGroup, _words
from genworker.training.spec import TrainingSpec
from tests.fakes import models

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = np.zeros((4, 4, 1), np.uint8)


class Recording:
    """A callback that remembers its calls."""

    calls: list[tuple[Any, ...]]

    def __init__(self, *_args: object) -> None:
        type(self).calls = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: object) -> None:
            self.calls.append((name, *args))
            self.then(name)

        return call

    def then(self, name: str) -> None:
        """What happens in each call."""


class Broken(Recording):
    """A callback that cannot pass on anything."""

    def then(self, name: str) -> None:
        raise ConnectionError(f"{name}: the server\nis gone")


class Flaky(Recording):
    """A callback that cannot store what it takes."""

    def then(self, name: str) -> None:
        if name == "flush":
            raise ConnectionError("no space")


class Unstartable(Recording):
    """A callback whose server is not there."""

    def __init__(self, *_args: object) -> None:
        super().__init__()
        raise UsageError("set MLFLOW_TRACKING_URI")


class Slow(Recording):
    """A callback that hangs until it is let go."""

    go = threading.Event()

    def then(self, name: str) -> None:
        self.go.wait(30)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[CallbackGroup, list[str]]]:
    """A function that makes a group of callback classes of this module, and the list that its events go to."""

    def make(*names: str) -> tuple[CallbackGroup, list[str]]:
        for name in names:
            monkeypatch.setitem(callbacks.CALLBACKS, name, f"{__name__}.{name}")
        events: list[str] = []
        store = open_store("memory://callbacks")
        return CallbackGroup(names, store, models.train_spec(), 0, events.append), events

    return make


def test_spec_and_registry_know_the_same_names() -> None:
    """What a spec may name is what there is."""
    (literal, _) = get_args(TrainingSpec.model_fields["callbacks"].annotation)
    assert set(get_args(literal)) == set(callbacks.CALLBACKS)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The error helps."""
    with pytest.raises(UsageError, match=r"'tensorbord'.*tensorboard, mlflow; did you mean 'tensorboard'"):
        callbacks.get("tensorbord")


def test_everything_arrives_in_order(group: Callable[..., tuple[CallbackGroup, list[str]]]) -> None:
    """A callback sees every call, the end last, and later calls never."""
    callback, events = group("Recording")
    callback.on_report({"images_seen": 8, "elbo.kl": 1.5})
    callback.on_picture(8, PIXELS)
    callback.on_alarm(8, "odd")
    callback.on_evaluation(8, {"frechet": 3.0})
    callback.flush()
    callback.close()
    callback.on_report({"images_seen": 16})
    callback.close()
    assert Recording.calls == [
        ("on_report", {"images_seen": 8, "elbo.kl": 1.5}),
        ("on_picture", 8, PIXELS),
        ("on_alarm", 8, "odd"),
        ("on_evaluation", 8, {"frechet": 3.0}),
        ("flush",),
        ("close",),
    ]
    assert not events


def test_a_report_is_handed_over_as_it_was(group: Callable[..., tuple[CallbackGroup, list[str]]]) -> None:
    """The loop may go on to change its own mapping."""
    callback, _ = group("Recording")
    metrics = {"images_seen": 8}
    callback.on_report(metrics)
    metrics["images_seen"] = 9
    callback.close()
    assert Recording.calls[0] == ("on_report", {"images_seen": 8})


def test_a_broken_callback_is_named_and_then_left_out(
    group: Callable[..., tuple[CallbackGroup, list[str]]],
) -> None:
    """It is told once what failed, once that it is left out; the callback beside it is not touched."""
    callback, events = group("Broken", "Recording")
    for step in range(10):
        callback.on_report({"images_seen": step})
    callback.close()
    assert events[0] == (
        "callback Broken failed in on_report, training goes on: ConnectionError: on_report: the server is gone"
    )
    assert events[1:] == ["callback Broken failed 3 times in a row and is left out from now on"]
    assert len(Broken.calls) == 4  # three reports, and it is closed all the same
    assert len(Recording.calls) == 11


def test_a_callback_that_fails_now_and_then_stays(
    group: Callable[..., tuple[CallbackGroup, list[str]]],
) -> None:
    """Failures between successes are told once and do not end it."""
    callback, events = group("Flaky")
    for step in range(10):
        callback.on_report({"images_seen": step})
        callback.flush()
    callback.close()
    assert len(Flaky.calls) == 21
    assert events == ["callback Flaky failed in flush, training goes on: ConnectionError: no space"]


def test_a_callback_is_named_once_and_servers_without_passwords() -> None:
    """Two of one kind would write over each other; an error of a client may hold the address that it was given."""
    with pytest.raises(UsageError, match=r"training\.callbacks.*name each once"):
        models.train_spec(callbacks=["tensorboard", "tensorboard"])
    assert _words(ValueError("no http://me:secret@host/x\nhere")) == "ValueError: no http://host/x here"


def test_a_callback_that_cannot_start_is_left_out(
    group: Callable[..., tuple[CallbackGroup, list[str]]],
) -> None:
    """The message of why is passed on."""
    callback, events = group("Unstartable")
    callback.on_report({"images_seen": 1})
    callback.close()
    assert events == [
        "callback Unstartable cannot start and is left out, training goes on: UsageError: set MLFLOW_TRACKING_URI"
    ]


def test_nobody_waits_for_a_callback_that_hangs(
    group: Callable[..., tuple[CallbackGroup, list[str]]],
) -> None:
    """Telling it returns at once, however much waits; it is left out when it is too far behind, and the end comes in time."""
    Slow.go.clear()
    callback, events = group("Slow")
    began = time.monotonic()
    for step in range(1_200):
        callback.on_report({"images_seen": step})
    callback.close(timeout_seconds=0.05)
    assert time.monotonic() - began < 5
    assert "callback Slow is 1,000 calls behind and is left out from now on; training goes on" in events
    assert events[-1] == "callback Slow did not finish in time; what it had not stored yet is lost"
    # Who closes it again does not wait again.
    told, began = len(events), time.monotonic()
    callback.close(timeout_seconds=20.0)
    assert time.monotonic() - began < 5
    assert len(events) == told
    Slow.go.set()
