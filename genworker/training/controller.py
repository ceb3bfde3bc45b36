"""A way to follow Ray Train's controller and to end it: it waits for places that may never come, and says and hears nothing.

In: the board. Out: the controller introduces itself there and says what it does, so that the driver can end it and return.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback


class Introduction(ControllerCallback):  # type: ignore[misc]
    """Tells a board of the controller that it runs in. Ray Train keeps what is no `ray.train.UserCallback` as it is."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller before all else."""
        del train_run_context
        ray.get(self._board.meet.remote(ray.get_runtime_context().current_actor))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called in the controller in every round of its loop."""
        if type(current_state) is not type(previous_state):
            self._board.turn.remote(type(current_state).__name__)
