"""Where a run's reports, pictures and alarms go besides its own files. Adding one: a module, and a line here.

The names are those of ``training.callbacks`` in a spec. Classes are imported when a run uses them: their libraries are heavy.
"""

from __future__ import annotations

from genworker.registry import lookup
from genworker.training.callbacks.base import Callback

CALLBACKS: dict[str, str] = {
    "tensorboard": "genworker.training.callbacks.tensorboard.TensorBoard",
    "mlflow": "genworker.training.callbacks.mlflow.MLflow",
}


def get(name: str) -> type[Callback]:
    """The callback called ``name``; raises UsageError with the known names."""
    callback: type[Callback] = lookup("callback", CALLBACKS, name)
    return callback
