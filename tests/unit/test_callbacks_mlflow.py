"""The MLflow callback against MLflow's own file store, read back by MLflow's client."""

from __future__ import annotations

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from genworker.errors import StoreError, UsageError
from genworker.stores import open_store
from genworker.training.callbacks import mlflow
from genworker.training.callbacks.mlflow import RUN_KEY, MLflow
from tests.fakes import models

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads it when it is imported
tracking = pytest.importorskip("mlflow.tracking")
MlflowException = pytest.importorskip("mlflow.exceptions").MlflowException

if TYPE_CHECKING:
    from pathlib import Path

    from genworker.stores.base import Store

SPEC = models.train_spec(images=48)


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server that the environment names."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return tracking.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run's store."""
    return open_store(str(tmp_path / "runs" / "clothes"))


def run_of(store: Store, client: Any) -> Any:
    return client.get_run(json.loads(store.get(RUN_KEY))["run_id"])


def history(store: Store, client: Any, name: str) -> list[tuple[int, float]]:
    found = client.get_metric_history(run_of(store, client).info.run_id, name)
    return [(metric.step, metric.value) for metric in found]


def test_mlflow_has_what_was_told(store: Store, client: Any) -> None:
    """Spec, reports, evaluations, pictures and alarms are in one run of the experiment, which ends as finished."""
    callback = MLflow(store, SPEC, 0)
    callback.on_report({"images_seen": 24, "elbo.kl": 2.0, "elbo.kl_per_latent": [1.0, 3.0]})
    callback.on_report({"images_seen": 48, "elbo.kl": 1.0})
    callback.on_evaluation(48, {"frechet": 30.0})
    callback.on_picture(48, np.zeros((4, 4, 3), np.uint8))
    callback.on_alarm(48, "odd")
    callback.flush()
    callback.close()
    run = run_of(store, client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "clothes")
    assert run.data.params["training.batch_size"] == "8"
    assert run.data.params["data.name"] == "fashion-mnist"
    assert run.data.tags["genworker.spec_id"] == SPEC.spec_id
    assert run.data.tags["alarm.48"] == "odd"
    assert history(store, client, "elbo.kl") == [(24, 2.0), (48, 1.0)]
    assert history(store, client, "elbo.kl_per_latent") == [(24, 2.0)]
    assert history(store, client, "evaluation.frechet") == [(48, 30.0)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == [
        "samples/images-000000000048.png"
    ]
    assert client.get_experiment(run.info.experiment_id).name == "genworker"


def test_a_resumed_run_goes_on_in_its_mlflow_run(store: Store, client: Any) -> None:
    """The run is found again, is running again, and what it knows already is not logged twice."""
    stopped = MLflow(store, SPEC, 0)
    stopped.on_report({"images_seen": 16, "elbo.kl": 3.0})
    stopped.on_report({"images_seen": 24, "elbo.kl": 2.0})
    stopped.close()
    before = run_of(store, client)
    assert before.info.status == "KILLED"
    resumed = MLflow(store, SPEC, 16)
    assert run_of(store, client).info.status == "RUNNING"
    resumed.on_report({"images_seen": 24, "elbo.kl": 2.0})
    resumed.on_report({"images_seen": 48, "elbo.kl": 1.0})
    resumed.close()
    assert run_of(store, client).info.run_id == before.info.run_id
    assert run_of(store, client).info.status == "FINISHED"
    assert history(store, client, "elbo.kl") == [(16, 3.0), (24, 2.0), (48, 1.0)]


def test_a_server_that_does_not_know_the_run_gets_a_new_one(
    store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server, or one that lost its runs, is no reason to fail."""
    MLflow(store, SPEC, 0).close()
    first = run_of(store, client).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "other").as_uri())
    MLflow(store, SPEC, 0).close()
    assert run_of(store, tracking.MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])).info.run_id != first


def test_without_a_server_it_says_what_to_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own default, a folder below the working directory of some worker, would be lost."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        MLflow(store, SPEC, 0)


def test_a_server_that_is_not_there_is_told_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, or nobody answers: one message within seconds, without the password, and no minutes of attempts."""
    monkeypatch.setattr(mlflow, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}/mlflow")
        with pytest.raises(
            StoreError, match=rf"^MLFLOW_TRACKING_URI http://127\.0\.0\.1:{port}/mlflow: nothing answers"
        ):
            MLflow(store, SPEC, 0)
    with pytest.raises(StoreError, match=r"nothing answers there within 0\.3 s \(ConnectionError\)"):
        MLflow(store, SPEC, 0)
    assert not list(store.list())


def test_whatever_a_server_answers_is_for_the_client(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that wants a login answers too; what it says of each call is told by MLflow's client."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(401)

        def do_GET(self) -> None:
            self.send_error(401)

        def do_POST(self) -> None:
            self.send_error(401)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(MlflowException, match="401"):
            MLflow(store, SPEC, 0)
        server.shutdown()


def test_a_password_in_the_address_is_kept_nowhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside the run nor in a message, whatever is wrong with the address; the run is found again without it."""
    monkeypatch.setattr(mlflow, "_check_answers", lambda _uri: None)
    address = os.environ["MLFLOW_TRACKING_URI"]
    store.put(RUN_KEY, json.dumps({"tracking_uri": "http://me:secret@host:5000", "run_id": "r"}).encode())
    asked = mlflow.without_login(json.loads(store.get(RUN_KEY))["tracking_uri"])
    assert asked == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    store.delete(RUN_KEY)
    MLflow(store, SPEC, 0).close()
    assert "@" not in store.get(RUN_KEY).decode()
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@:5000")
    with pytest.raises(StoreError, match=r"^MLFLOW_TRACKING_URI http://:5000: nothing answers .*\(InvalidURL\)"):
        MLflow(store, SPEC, 0)
