"""Reports, pictures and evaluations of a run on an MLflow server, the one that MLFLOW_TRACKING_URI names.

In: what a callback is told. Out: one MLflow run in the experiment ``genworker``, or the one that MLFLOW_EXPERIMENT_NAME names.
Its id is kept in the run's store, so that a resumed run goes on in the same one. Needs the extra ``genworker[mlflow]``.

MLflow's own client tries again for minutes, which carries a run over a restart of the server but would not tell a wrong address
from a slow one; so the server is asked once, shortly, before the client is.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genworker.config import flattened
from genworker.errors import ObjectMissingError, StoreError, UsageError
from genworker.printable import without_login
from genworker.training.pictures import png_bytes

if TYPE_CHECKING:
    from genworker.schema import Pixels
    from genworker.stores.base import Store
    from genworker.training.callbacks.base import Values
    from genworker.training.spec import TrainSpec

RUN_KEY = "mlflow.json"
_MAX_PARAMS = 100  # in one request
_MAX_PARAM_CHARACTERS = 6_000
_POSITION = "images_seen"
_ANSWER_SECONDS = 5.0


class MLflow:
    """See the module, and `genworker.training.callbacks.base.Callback`."""

    def __init__(self, store: Store, spec: TrainSpec, images_seen: int) -> None:  # noqa: ARG002  # MLflow knows how far it is
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as err:
            raise UsageError(
                "training.callbacks mlflow: the package is not installed; pip install 'genworker[mlflow]', or take "
                "mlflow out of training.callbacks"
            ) from err
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise UsageError(
                "training.callbacks mlflow: MLFLOW_TRACKING_URI is not set; set it to your server, such as "
                "http://mlflow:5000, or take mlflow out of training.callbacks"
            )
        _check_answers(uri)
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._spec = spec
        self._store = store
        self._run_id, self._logged_to = self._run_before(uri) or (self._new_run(uri), -1)

    def on_report(self, metrics: Values) -> None:
        """Log all numbers, and the mean of each list; what this MLflow run has from before a restart is not logged twice."""
        step = int(metrics[_POSITION])  # type: ignore[arg-type]
        if step > self._logged_to:
            self._log({name: value for name, value in metrics.items() if name != _POSITION} | {_POSITION: step}, step)

    def on_picture(self, images_seen: int, pixels: Pixels) -> None:
        """Store a grid of samples as an artifact below ``samples/``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"images-{images_seen:012d}.png"
            path.write_bytes(png_bytes(pixels))
            self._client.log_artifact(self._run_id, str(path), "samples")

    def on_evaluation(self, images_seen: int, metrics: Values) -> None:
        """Log the metrics as ``evaluation.<name>``."""
        self._log({f"evaluation.{name}": value for name, value in metrics.items()}, images_seen)

    def on_alarm(self, images_seen: int, text: str) -> None:
        """Set the tag ``alarm.<images seen>``."""
        self._client.set_tag(self._run_id, f"alarm.{images_seen}", text)

    def flush(self) -> None:
        """Nothing: everything was sent when it was told."""

    def close(self) -> None:
        """Mark the MLflow run as ended: FINISHED when all images were seen, KILLED when a resume is to come."""
        metrics = self._client.get_run(self._run_id).data.metrics
        done = metrics.get(_POSITION, 0) >= self._spec.training.images
        self._client.set_terminated(self._run_id, "FINISHED" if done else "KILLED")

    def _run_before(self, uri: str) -> tuple[str, int] | None:
        """The MLflow run that this run began, and the images seen that it knows of; None when there is none here."""
        from mlflow.exceptions import MlflowException

        try:
            known = json.loads(self._store.get(RUN_KEY))
        except ObjectMissingError:
            return None
        if without_login(known["tracking_uri"]) != without_login(uri):
            return None
        try:
            run = self._client.get_run(known["run_id"])
        except MlflowException as err:
            if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        self._client.set_terminated(known["run_id"], "RUNNING")
        return known["run_id"], int(run.data.metrics.get(_POSITION, -1))

    def _new_run(self, uri: str) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "genworker")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        title = self._store.url.rstrip("/").rsplit("/", 1)[-1]
        tags = {"genworker.url": self._store.url, "genworker.spec_id": self._spec.spec_id}
        run_id: str = self._client.create_run(experiment_id, run_name=title, tags=tags).info.run_id
        spec = flattened(self._spec.model_dump(mode="json"))
        params = [Param(key, str(value)[:_MAX_PARAM_CHARACTERS]) for key, value in spec]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MAX_PARAMS])
        self._store.put(
            RUN_KEY, json.dumps({"tracking_uri": without_login(uri), "run_id": run_id}).encode(), overwrite=True
        )
        return run_id

    def _log(self, values: Values, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = []
        for name, value in values.items():
            if isinstance(value, list):
                finite = [item for item in value if item is not None and math.isfinite(item)]
                number = sum(finite) / len(finite) if finite else math.nan
            else:
                number = math.nan if value is None else float(value)
            metrics.append(Metric(name, number, now, step))
        self._client.log_batch(self._run_id, metrics=metrics)


def _check_answers(uri: str) -> None:
    """Raise StoreError unless something answers at ``uri``, where that is an address; whatever it answers is the client's."""
    import requests  # which MLflow's client is built on, so that proxies and certificates count alike

    if not uri.startswith(("http://", "https://")):
        return
    shown = without_login(uri)
    try:
        requests.head(uri, timeout=_ANSWER_SECONDS)
    except requests.exceptions.SSLError:
        return
    except requests.RequestException as err:
        raise StoreError(
            f"MLFLOW_TRACKING_URI {shown}: nothing answers there within {_ANSWER_SECONDS:g} s ({type(err).__name__}), so it "
            "hears nothing of this run; check the address and that the server runs, then stop the run and start it again, "
            "which goes on where it was"
        ) from err
