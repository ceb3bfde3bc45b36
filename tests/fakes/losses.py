"""Losses of a real family, with something in their way: a pause, a number that is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genworker import families
from genworker.families.base import Losses, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from genworker.training.step import Context


def wrap_losses(
    monkeypatch: pytest.MonkeyPatch, family: str, around: Callable[[Callable[[], Losses], Context], Losses]
) -> None:
    """Let ``around`` compute the losses of every phase of a family: it is given the real one to call, and the context."""
    made = families.get(family).phases

    def wrapped(self: Any) -> tuple[Phase, ...]:
        def loss_of(phase: Phase) -> Callable[..., Losses]:
            return lambda networks, batch, ctx: around(lambda: phase.loss(networks, batch, ctx), ctx)

        return tuple(Phase(**{**vars(phase), "loss": loss_of(phase)}) for phase in made(self))

    monkeypatch.setattr(families.get(family), "phases", wrapped)
