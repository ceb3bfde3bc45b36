"""What an actor makes of failures: those that its process will not get over, and those that are a task's."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from genworker.bulk.actor import ShardActor
from genworker.bulk.plan import Task
from genworker.errors import DeviceError
from tests.fakes import models

if TYPE_CHECKING:
    from pathlib import Path

TASK = Task(0, 0, 10, "data/shard-0")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


def failing(tmp_path: Path, err: Exception, *, use_gpu: bool) -> ShardActor:
    """An actor whose shards fail with ``err``."""

    def make(_task: Task, _attempt: int) -> None:
        raise err

    actor = ShardActor(str(tmp_path), models.bundle_of(), use_gpu=use_gpu)
    actor._maker = SimpleNamespace(make=make)  # type: ignore[assignment]
    return actor


@pytest.mark.parametrize(
    ("err", "told"),
    [
        (torch.AcceleratorError(ILLEGAL), ILLEGAL.splitlines()[0]),
        (RuntimeError(ILLEGAL), ILLEGAL.splitlines()[0]),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "CUDNN_STATUS_EXECUTION_FAILED"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"), "CUBLAS"),
        (torch.OutOfMemoryError(NO_MEMORY), NO_MEMORY),
        (torch.OutOfMemoryError(), "OutOfMemoryError"),
        (torch.AcceleratorError(), "AcceleratorError"),
        (RuntimeError("CUDA error: out of memory"), "memory was not enough"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "memory was not enough"),
    ],
)
def test_a_gpu_that_failed_is_no_matter_of_the_task(tmp_path: Path, err: Exception, told: str) -> None:
    """CUDA answers all that comes after with the same error, so the pool is told to take another process."""
    with pytest.raises(DeviceError, match=r"^the GPU('s memory was not enough| failed): ") as caught:
        failing(tmp_path, err, use_gpu=True).make(TASK, 0)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("err", "use_gpu"),
    [
        (RuntimeError("shape '[3]' is invalid for input of size 4"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError("no room"), False),
        (MemoryError(), True),
        (RuntimeError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: no kernel image is available"), False),
        (ValueError("CUDA error"), True),
    ],
)
def test_other_failures_are_told_as_they_are(tmp_path: Path, err: Exception, use_gpu: bool) -> None:
    """Another attempt is made, and an actor that fails again and again is replaced by the pool."""
    with pytest.raises(type(err)) as caught:
        failing(tmp_path, err, use_gpu=use_gpu).make(TASK, 0)
    assert caught.value is err
