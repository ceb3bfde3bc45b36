"""Gradients of two real workers are summed while the backward pass still runs, whatever order and part of them arrives.

Run as a program, this file is one of the two: it writes what each scenario gave, which the tests then look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from genworker.training import gradients
from genworker.training.collectives import WorkerGroup
from genworker.training.gradients import GradientSum
from tests.ranks import run_ranks

LAYER = 10  # weights of each layer; one bucket


def layers() -> nn.ParameterList:
    """Four layers that are used one after the other."""
    return nn.ParameterList([nn.Parameter(torch.full((LAYER,), float(index + 1))) for index in range(4)])


def loss_of(weights: nn.ParameterList, rank: int, *, without: int = -1) -> Tensor:
    """The product of all layers but one; 2 times as large on the second worker."""
    product = torch.full((LAYER,), rank + 1.0)
    for index, weight in enumerate(weights):
        if index != without:
            product = product * weight
    return product.sum()


def scenario(rank: int, *, steps: int = 1, without: int = -1, armed: bool = True) -> dict[str, Any]:
    """One step of so many micro-batches: the sums, the votes, and how many buckets went out before `finish`."""
    weights = layers()
    summed = GradientSum(WorkerGroup(rank, 2, 0.5), weights, num_votes=2)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as spy:
        for step in range(steps):
            loss = loss_of(weights, rank, without=without)
            if armed and step == steps - 1:
                with summed.last_backward():
                    loss.backward()  # type: ignore[no-untyped-call]
            else:
                loss.backward()  # type: ignore[no-untyped-call]
        early = spy.call_count
        flat, votes = summed.finish(torch.tensor([1.0, float(rank)]))
        calls = spy.call_count
    weights[0].grad.mul_(2.0)  # type: ignore[union-attr]  # the flat vector and the gradients are one and the same memory
    return {
        "grads": [float(weight.grad[0]) for weight in weights],  # type: ignore[index]
        "flat": flat.reshape(4, LAYER)[:, 0].tolist(),
        "votes": votes,
        "early": early,
        "calls": calls,
        "hooks": sum(bool(weight._post_accumulate_grad_hooks) for weight in weights),
    }


def work(rank: int, folder: Path) -> None:
    """Play every scenario as one of two."""
    gradients.BUCKET_BYTES = 4 * LAYER
    dist.init_process_group("gloo", init_method=(folder / "group").as_uri(), rank=rank, world_size=2)
    found = {
        "plain": scenario(rank),
        "two micro-batches": scenario(rank, steps=2),
        "without the last layer": scenario(rank, without=3),
        "without the first layer": scenario(rank, without=0),
        "nothing early": scenario(rank, armed=False),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two workers found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, 2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("name", "early", "sums"),
    [
        # d/dw_i of r w_1 w_2 w_3 w_4 is r 24 / w_i, and r is 1 and 2 on the two workers.
        ("plain", 3, [72.0, 36.0, 24.0, 18.0]),
        ("two micro-batches", 3, [144.0, 72.0, 48.0, 36.0]),
        ("without the last layer", 0, [18.0, 9.0, 6.0, 0.0]),
        ("without the first layer", 3, [0.0, 36.0, 24.0, 18.0]),
        ("nothing early", 0, [72.0, 36.0, 24.0, 18.0]),
    ],
)
def test_buckets_go_out_as_soon_as_they_are_full(
    found: list[dict[str, dict[str, Any]]], name: str, early: int, sums: list[float]
) -> None:
    """The last layers' buckets leave during the backward pass, in order; the sum is the same, and no hook stays behind."""
    for rank in range(2):
        seen = found[rank][name]
        assert seen["early"] == early
        assert seen["calls"] == 4
        assert seen["grads"] == [2 * sums[0], *sums[1:]]
        assert seen["flat"] == seen["grads"][::-1]
        assert seen["votes"] == [2.0, 1.0]
        assert seen["hooks"] == 0


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
