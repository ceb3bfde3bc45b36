"""Time of a training step of the convolutional stacks, against the same stacks of torch's own layers in torch's own layout.

    python -m tests.benchmarks.networks [--rounds N] [--threads N]

One step is a forward pass, the sum of squares, and a backward pass, for weights alone and, as penalties and pseudo-inputs need
it, for the images too. The baseline has the same weights; its layers next to the image are `nn.Conv2d` and
`nn.ConvTranspose2d` with their strides, and nothing is laid out channels-last. Rounds alternate; the best of each is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genworker.families.blocks import DownStack, StackConfig, UpStack
from genworker.families.patches import PatchConv2d, PatchConvTranspose2d

# Images of a step, channels, size, stack.
CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "plain, 28x28x1, patch 2": (512, 1, 28, {"widths": [64, 32], "blocks": [1, 0], "patch": 2}),
    "plain, 64x64x3, patch 2": (64, 3, 64, {"widths": [128, 64, 32], "blocks": 1, "patch": 2}),
    "plain, 64x64x3": (16, 3, 64, {"widths": [128, 64, 32], "blocks": 1}),
    "bottleneck, 28x28x1": (128, 1, 28, {"block": "bottleneck", "widths": [64, 32], "blocks": 1}),
}


class _OwnLayout(TorchFunctionMode):
    """Tensors stay in the layout that torch gives them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is Tensor.contiguous:
            return func(args[0])
        return func(*args, **(kwargs or {}))


def with_own_layers(stack: nn.Module) -> nn.Module:
    """A copy whose layers next to the image compute as torch does."""
    stack = copy.deepcopy(stack)
    for layer in stack.modules():
        if isinstance(layer, PatchConv2d):
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif isinstance(layer, PatchConvTranspose2d):
            layer.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
    return stack


def step_seconds(stack: nn.Module, x: Tensor, dtype: torch.dtype, layout: AbstractContextManager[object]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    with layout, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = stack(x)
    out.float().square().sum().backward()
    return time.perf_counter() - began


def main() -> None:
    """Print one row per stack, precision and kind of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = Table("step", "type", "torch's own, us an image", "genworker, us an image", "speed-up", title="networks")
    for name, (count, channels, size, values) in CASES.items():
        config = StackConfig.parse(values, origin=name)
        torch.manual_seed(0)
        images = torch.rand(count, channels, size, size) * 2 - 1
        up, down = UpStack(64, channels, size, size, config), DownStack(channels, size, size, 64, config)
        steps = {
            "up": (up, torch.randn(count, 64)),
            "down": (down, images),
            "down, gradient of images": (down, images.clone().requires_grad_()),
        }
        for what, (stack, x) in steps.items():
            own = with_own_layers(stack)
            for dtype in (torch.float32, torch.bfloat16):
                ways: list[tuple[nn.Module, Callable[[], AbstractContextManager[object]]]]
                ways = [(own, _OwnLayout), (stack, contextlib.nullcontext)]
                seconds = [[step_seconds(way, x, dtype, layout()) for way, layout in ways] for _ in range(args.rounds)]
                theirs, ours = (min(round_[place] for round_ in seconds) / count * 1e6 for place in (0, 1))
                kind = str(dtype).removeprefix("torch.")
                table.add_row(f"{name}: {what}", kind, f"{theirs:.0f}", f"{ours:.0f}", f"{theirs / ours:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
