"""The only place that starts or joins Ray.

Joins the cluster that RAY_ADDRESS names (as inside `ray job submit`), else starts a local one for the time of the command.
A local cluster gets a token of its own, handed to its processes through the environment and never written to disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray

from genworker.errors import ClusterError

_MIN_LOCAL_CPUS = 2  # two workers are the least that shows data-parallel work, on one core too

# Freed buffers of convolutions stay in the process instead of being unmapped and faulted in again; measured 1.4-1.9 times
# faster for large batches on a CPU.
ALLOCATOR_ENV = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)}


@contextlib.contextmanager
def connect() -> Iterator[bool]:
    """Be connected to Ray inside the block; an existing connection is used and left as it is.

    Gives whether nodes may join: not a cluster that is started here for the time of the block.

    Raises:
        ClusterError: the cluster that RAY_ADDRESS names cannot be joined.
    """
    if ray.is_initialized():
        yield True
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    joined = bool(os.environ.get("RAY_ADDRESS"))
    if joined:
        _join()
    else:
        _start()
    if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
        # Ray puts handlers of its own in their place, which end the process before anything is saved.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield joined
    finally:
        ray.shutdown()


def _join() -> None:
    address = os.environ["RAY_ADDRESS"]
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise ClusterError(
            f"RAY_ADDRESS {address!r}: cannot join this cluster: {err}; check the address, that `ray start --head` runs "
            "there, and RAY_AUTH_MODE / RAY_AUTH_TOKEN_PATH; unset RAY_ADDRESS to start a local one"
        ) from err


def _start() -> None:
    # ray.init turns token authentication on by itself unless RAY_AUTH_MODE says otherwise; without a token at hand it would
    # write one below HOME, which later `ray start` picks up and `ray job submit` does not.
    if not os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(
        address="local",
        num_cpus=max(_MIN_LOCAL_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def actor_options(*, num_cpus: int = 1, num_gpus: float = 0) -> dict[str, Any]:
    """Ray options of a bulk actor: its resources, no automatic restarts (the pool counts attempts itself)."""
    return {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": ALLOCATOR_ENV},
    }


def room(options: dict[str, Any]) -> int:
    """How many actors of these options the nodes of the cluster can hold, whoever uses them now."""
    needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
    fits = 0
    for node in ray.nodes():
        if node["Alive"]:
            # A hair more, because three times a third of a GPU is a whole one.
            there = node["Resources"]
            fits += min(int(there.get(name, 0) / need + 1e-6) for name, need in needs.items() if need)
    return fits


def describe(options: dict[str, Any]) -> str:
    """What an actor needs and what the cluster has, for messages."""
    there = ray.cluster_resources()
    per_actor = f"{options['num_cpus']} CPU" + (f" and {options['num_gpus']:g} GPU" if options["num_gpus"] else "")
    return (
        f"each needs {per_actor}; the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs "
        f"on {sum(node['Alive'] for node in ray.nodes())} nodes"
    )


def check_workers(workers: int, cpus_per_worker: int, *, use_gpu: bool) -> None:
    """Raise ClusterError unless the cluster can hold ``workers`` training workers."""
    there = ray.cluster_resources()
    cpus, gpus = workers * cpus_per_worker, workers * int(use_gpu)
    if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
        raise ClusterError(
            f"{workers} workers were asked for, which need {cpus} CPUs and {gpus} GPUs; the cluster has "
            f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs: lower --workers or add nodes"
        )
