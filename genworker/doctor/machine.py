"""What this machine is: versions, processors, memory, space for temporary files.

In: nothing but the machine. Out: findings. It starts nothing and writes nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from genworker.device import device_class, has_fast_bfloat16, num_processors
from genworker.doctor.base import Finding

_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - asked for its size, nothing is put there


def check_machine() -> Iterator[Finding]:
    """Yield a finding for every part of this machine that matters."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield from _pins()
    yield _processor()
    yield _gpu()
    yield _memory()
    if _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        yield _space(
            "shared memory",
            _SHARED_MEMORY,
            free,
            warn_below=_GIB,
            fix="Ray then uses the disk: docker run --shm-size=2g",
        )
    folder = Path(tempfile.gettempdir())
    yield _space(
        "temporary files", folder, shutil.disk_usage(folder).free, warn_below=5 * _GIB, fix="make space or set TMPDIR"
    )


def _pins() -> Iterator[Finding]:
    """Libraries that every node must have in one version."""
    for requirement in metadata.requires("genworker") or []:
        name, pinned, wanted = requirement.partition(";")[0].strip().partition("==")
        if not pinned:
            continue
        name = name.partition("[")[0]
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "fail", "is not installed", f"pip install {name}=={wanted}")
            continue
        # A local build tag (+cpu, +cu130) belongs to the same release, but computes other bits.
        same = there.partition("+")[0] == wanted
        yield Finding(
            name, "ok" if same else "warn", there, "" if same else f"genworker is tested with {wanted}: pip install it"
        )


def _processor() -> Finding:
    cores = num_processors()
    device = torch.device("cpu")
    fast = "bfloat16 in hardware" if has_fast_bfloat16(device) else "no bfloat16 in hardware, so float32 is used"
    return Finding("processor", "ok", f"{cores} cores, {device_class(device)}, {fast}")


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        if built is None or not Path("/dev/nvidia0").exists():
            return Finding("gpu", "ok", "none")
        return Finding(
            "gpu", "fail", f"there is one, and torch (CUDA {built}) cannot use it", "update the driver: nvidia-smi"
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Finding("gpu", "ok", f"{len(names)}: {', '.join(sorted(set(names)))}, CUDA {torch.version.cuda}")


def _memory() -> Finding:
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    seen = f"{pages / _GIB:.1f} GiB free of {total / _GIB:.1f}"
    if total < 4 * _GIB:
        return Finding("memory", "warn", seen, "Ray and two actors take about 2 GiB before a model is loaded")
    return Finding("memory", "ok", seen)


def _space(name: str, folder: Path, free: float, *, warn_below: float, fix: str) -> Finding:
    seen = f"{free / _GIB:.1f} GiB free at {folder}"
    return Finding(name, "ok", seen) if free >= warn_below else Finding(name, "warn", seen, fix)
