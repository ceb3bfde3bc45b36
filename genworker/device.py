"""Which processor computes, what it can do, and how much of its memory a process takes. Knows torch, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from genworker.errors import UsageError

# The rest is for what each process has outside torch's allocator: its CUDA context and kernels.
_OF_A_SHARE = 0.9
# How the libraries below torch begin what they say; torch has a type of its own for CUDA's alone.
_FAILURES = ("CUDA error", "cuDNN error", "CUBLAS_STATUS_", "CUDNN_STATUS_")
_NO_GPU_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_NO_HOST_MEMORY = "DefaultCPUAllocator"

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device(*, use_gpu: bool, share: float = 1.0) -> torch.device:
    """The GPU that this process was given, or the CPU.

    Args:
        use_gpu: whether it was given one.
        share: how much of the GPU's memory it may take, where others live there too.

    Raises:
        UsageError: torch finds no GPU here.
    """
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            f"use_gpu: torch {torch.__version__} finds no GPU on this machine; leave --use-gpu out, or run where there is one: "
            "`genworker doctor` says what torch and the driver see"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(_OF_A_SHARE * share, device)
    return device


def is_out_of_memory(err: Exception) -> bool:
    """Whether a device had no memory for what was asked of it; on a CPU, and below torch on a GPU, words alone say so."""
    return isinstance(err, torch.OutOfMemoryError | MemoryError) or (
        isinstance(err, RuntimeError) and any(words in str(err) for words in (_NO_HOST_MEMORY, *_NO_GPU_MEMORY))
    )


def gpu_failure(err: Exception) -> str | None:
    """What to say of a GPU that a process will not get over, in a line; None for all other errors.

    Illegal addresses, memory that ECC gave up, a device that fell off the bus: CUDA answers whatever is asked afterwards with
    the same error. A lack of memory is one too: cuDNN goes on with other algorithms than before, which may give other bits.
    """
    words = str(err)
    if not isinstance(err, RuntimeError) or _NO_HOST_MEMORY in words:
        return None
    line = (words.splitlines() or [type(err).__name__])[0]
    if is_out_of_memory(err):
        return f"the GPU's memory was not enough: {line}"
    told = isinstance(err, torch.AcceleratorError) or any(name in words for name in _FAILURES)
    return f"the GPU failed: {line}" if told else None


def memory_refusals(device: torch.device) -> int:
    """How often this process was refused memory of a GPU, whoever caught that; 0 on a CPU."""
    return int(torch.cuda.memory_stats_as_nested_dict(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def check_memory(device: torch.device, refusals: int) -> None:
    """Raise OutOfMemoryError if memory was refused more often than ``refusals`` times.

    Where cuDNN finds no room for an algorithm it takes another, without a word and for good, and that may give other bits.
    """
    if memory_refusals(device) > refusals:
        raise torch.OutOfMemoryError(
            "CUDA out of memory: a convolution may have gone on with another algorithm, which gives other bits; give a "
            "smaller --micro-batch, or more of the GPU where actors share it"
        )


def free_unused_memory(device: torch.device) -> None:
    """Give back what torch keeps of a GPU's memory for later, so that others find room; on a CPU nothing is kept by it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def num_processors() -> int:
    """Processors that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block, what this thread asks of torch on a CPU is computed by ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_class(device: torch.device) -> str:
    """The kind of processor as far as it decides bits: ``cuda/NVIDIA H100 80GB HBM3``, ``cpu/AVX512+BF16``, ..."""
    if device.type == "cuda":
        return f"cuda/{torch.cuda.get_device_name(device)}"
    bf16 = "+BF16" if has_fast_bfloat16(device) else ""
    # oneDNN computes bfloat16 by other kernels where there are tiles, which round and add otherwise.
    amx = "+AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"cpu/{torch.backends.cpu.get_cpu_capability()}{bf16}{amx}"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster than in float32 here."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype that ``precision`` means on ``device``."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
