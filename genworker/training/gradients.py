"""The sum of one step's gradients over all workers, which is carried while the backward pass still runs.

Networks are plain modules, not wrapped: penalties on gradients of gradients reduce wrongly through
DistributedDataParallel (pytorch#47562, #63929), and a GAN's two players disturb each other's buffers there
(pytorch#175024). What makes it fast is kept: gradients are packed into buckets in the order in which they are ready, from
the last layer to the first, and a full bucket is summed while earlier layers are still computed (Li et al., "PyTorch
Distributed", VLDB 2020, section 3.2). A gradient is ready when a parameter has accumulated it; what a penalty takes inside a
loss does not count.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genworker.training.collectives import WorkerGroup

# For 5.6 MB of gradients on two cores 1 MiB made training faster than 2 MiB (tests/benchmarks/RESULTS.md, "Speed of training").
BUCKET_BYTES = 2**20


@dataclass
class _Bucket:
    """Neighbours in the flat vector: ``parameters`` fill it from ``start`` on; ``missing`` of them have no gradient yet."""

    start: int
    parameters: list[nn.Parameter]
    missing: int

    def pieces(self) -> list[Tensor]:
        """Its gradients, flat; a parameter without one counts as zero."""
        return [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters]


class GradientSum:
    """One step's gradients of ``parameters``, of which each worker has a part of the sum.

    Losses are means over the local batch, so each worker scales its loss by its `WorkerGroup.share` before the backward
    pass; the sum is then the gradient of the mean over the global batch. All workers need the same parameters in the same
    order, so that they fill and send the same buckets.
    """

    def __init__(self, group: WorkerGroup, parameters: Iterable[nn.Parameter], num_votes: int) -> None:
        self._group = group
        self._parameters = list(parameters)[::-1]
        self._num_votes = num_votes
        self._buckets = list(_buckets(self._parameters))
        self._sent: list[dist.Work] = []

    @functools.cached_property
    def _flat(self) -> Tensor:
        """Where the sum is formed; not before a bucket is sent, when the backward pass has freed some of its memory."""
        total = sum(parameter.numel() for parameter in self._parameters) + self._num_votes
        return self._parameters[0].new_empty(total)

    @contextlib.contextmanager
    def last_backward(self) -> Iterator[None]:
        """The backward pass inside the block is the step's last: what it completes is sent at once."""
        if self._group.world_size == 1:
            yield
            return
        hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._count, bucket))  # type: ignore[no-untyped-call]
            for bucket in self._buckets
            for parameter in bucket.parameters
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, votes: Tensor) -> tuple[Tensor, list[float]]:
        """Replace gradients by their sum over all workers; return the flat sum, one vector, and the sum of each vote.

        The votes, float32 [num_votes], ride along, so that workers agree on something in every step at no cost.
        """
        self._flat[-self._num_votes :] = votes
        for number in range(len(self._sent), len(self._buckets)):
            self._send(number)
        for work in self._sent:
            work.wait()
        offset = 0
        for parameter in self._parameters:
            parameter.grad = self._flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        return self._flat[: -self._num_votes], self._flat[-self._num_votes :].tolist()

    def _count(self, bucket: _Bucket, _: Tensor) -> None:
        """One more gradient of a bucket is there. The last bucket carries the votes and waits for them."""
        bucket.missing -= 1
        while len(self._sent) < len(self._buckets) - 1 and not self._buckets[len(self._sent)].missing:
            self._send(len(self._sent))

    def _send(self, number: int) -> None:
        bucket = self._buckets[number]
        pieces = bucket.pieces()
        end = bucket.start + sum(len(piece) for piece in pieces)
        torch.cat(pieces, out=self._flat[bucket.start : end])
        if self._group.world_size > 1:
            carried = self._flat[bucket.start : None if number == len(self._buckets) - 1 else end]
            work = dist.all_reduce(carried, async_op=True)
            assert work is not None
            self._sent.append(work)


def _buckets(parameters: list[nn.Parameter]) -> Iterator[_Bucket]:
    """Cut ``parameters`` into neighbours of about so many bytes."""
    ends = itertools.accumulate(parameter.numel() * parameter.element_size() for parameter in parameters)
    numbered = zip(parameters, ends, strict=True)
    start = 0
    for _, members in itertools.groupby(numbered, key=lambda pair: (pair[1] - 1) // BUCKET_BYTES):
        bucket = [parameter for parameter, _ in members]
        yield _Bucket(start, bucket, len(bucket))
        start += sum(parameter.numel() for parameter in bucket)
