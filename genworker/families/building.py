"""Building networks without memory, to compare a stranger's weights with what a config asks for before anything is allocated.

In: a family. Out: its sub-networks on torch's meta device: names, shapes and types, no values, whatever sizes a config says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from genworker.families.base import Family, Networks

# torch makes random meta tensors in Python code that takes a second to import, for values that are not there.
_EMPTY: dict[Any, Callable[..., torch.Tensor]] = {torch.randn: torch.empty, torch.rand: torch.empty}


def build_without_memory(family: Family) -> Networks:
    """Make all sub-networks on the meta device; raises what `Family.build` raises, and RuntimeError for impossible sizes."""
    with torch.device("meta"), _NoValues():
        return family.build()


class _NoValues(TorchFunctionMode):
    """Leaves out what fills tensors that have no values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__")
        if fills and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        return _EMPTY.get(func, func)(*args, **(kwargs or {}))
