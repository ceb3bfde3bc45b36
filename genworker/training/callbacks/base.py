"""What a callback is: it is told what a run reports, and passes it on to another program. It changes nothing in the run.

Callbacks live on rank 0, each in a thread of its own (`genworker.training.callbacks.group`): they may be slow, and they may
raise. All positions are counted in images seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from genworker.schema import Pixels
    from genworker.stores.base import Store
    from genworker.training.spec import TrainSpec

# A number (NaN or None when it was not finite), or one number per latent.
Values = Mapping[str, float | list[float] | None]


class Callback(Protocol):
    """See the module. Every method may raise; the failure is told to the user and training goes on."""

    def __init__(self, store: Store, spec: TrainSpec, images_seen: int) -> None:
        """Begin, or go on from a checkpoint of ``images_seen``: what was told beyond it by a run before is void.

        Args:
            store: of the run.
            spec: of the run.
            images_seen: where training starts, 0 for a new run.
        """
        ...

    def on_report(self, metrics: Values) -> None:
        """Take a report; it holds ``images_seen``."""
        ...

    def on_picture(self, images_seen: int, pixels: Pixels) -> None:
        """Take a grid of samples, uint8 [H, W, C] with C 1 or 3."""
        ...

    def on_evaluation(self, images_seen: int, metrics: Values) -> None:
        """Take the metrics of an evaluation by name, of the model as it was after ``images_seen``."""
        ...

    def on_alarm(self, images_seen: int, text: str) -> None:
        """Take an alarm of the watchdog."""
        ...

    def flush(self) -> None:
        """Store what was told so far; called with each checkpoint."""
        ...

    def close(self) -> None:
        """Store everything and end."""
        ...
