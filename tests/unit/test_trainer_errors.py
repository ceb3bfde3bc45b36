"""What a run that ended with an error tells about going on, and how long one that is stopped has for that."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from genworker.errors import DivergedError, GenworkerError, SourceError, StoreAccessError, StoreError
from genworker.training import trainer
from genworker.training.spec import TrainSpec
from genworker.training.trainer import _with_last_checkpoint
from tests.fakes import models

KEY = "checkpoints/images-000000000640.safetensors"


@pytest.mark.parametrize("kind", [SourceError, StoreError, StoreAccessError])
def test_an_error_of_the_storage_names_the_checkpoint_to_go_on_from(kind: type[GenworkerError]) -> None:
    """A bucket that is gone costs no more than what came after the newest checkpoint, and the error says which that is."""
    error = _with_last_checkpoint(kind, "s3://data: no such bucket", KEY)
    assert type(error) is kind
    assert (
        str(error)
        == f"s3://data: no such bucket; the newest checkpoint is {KEY}: run the same command again to go on from there"
    )


@pytest.mark.parametrize(("kind", "last"), [(SourceError, None), (DivergedError, KEY)])
def test_other_errors_are_told_as_they_are(kind: type[GenworkerError], last: str | None) -> None:
    """Before the first checkpoint there is none to name, and a run that diverged would diverge again."""
    error = _with_last_checkpoint(kind, "it ended", last)
    assert (type(error), str(error)) == (kind, "it ended")


@pytest.mark.parametrize(("saving_seconds", "killed"), [(0.05, []), (60.0, ["controller"])])
def test_a_stopped_run_has_its_grace_to_save(
    monkeypatch: pytest.MonkeyPatch, saving_seconds: float, killed: list[str]
) -> None:
    """Workers that save in resources.stop_grace_seconds end by themselves; the controller of others is killed."""
    asked, ended, kills = threading.Event(), threading.Event(), list[str]()

    def fit(_spec: object, _url: str, _board: object) -> dict[str, Any]:
        asked.wait(10)
        ended.wait(saving_seconds)
        return {}

    def kill(controller: str) -> None:
        kills.append(controller)
        ended.set()

    def interrupt(_ended: threading.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "fit", fit)
    monkeypatch.setattr(trainer, "ray", SimpleNamespace(get=lambda value: value, kill=kill))
    board = SimpleNamespace(
        request_stop=SimpleNamespace(remote=asked.set), controller=SimpleNamespace(remote=lambda: "controller")
    )
    spec = models.train_spec().model_dump(mode="json") | {"resources": {"stop_grace_seconds": 0.5}}
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trainer._run(TrainSpec.parse(spec, origin="test"), "url", board, SimpleNamespace(follow=interrupt))  # type: ignore[arg-type]
    assert kills == killed
    assert time.monotonic() - started < 10
