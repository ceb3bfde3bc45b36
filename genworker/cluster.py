"""The only place that starts or joins Ray.

Joins the cluster that RAY_ADDRESS names (as inside `ray job submit`), else starts a local one for the time of the command.
A local cluster gets a token of its own, unless one is named, handed to its processes through the environment and never
written to disk.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import placement_group, remove_placement_group

from genworker import head
from genworker.errors import ClusterError

_SECONDS_BETWEEN_MESSAGES = 15.0
_POLL_SECONDS = 0.5
NODE_ID = "ray.io/node-id"  # a label that every node has
_MIN_LOCAL_CPUS = 2  # two workers are the least that shows data-parallel work, on one core too

# Freed buffers of convolutions stay in the process instead of being unmapped and faulted in again; measured 1.4-1.9 times
# faster for large batches on a CPU.
# glibc gives threads heaps of their own, of 64 MiB at most, which it does give back; in the one arena it keeps buffers as told
# (forward pass of 28x28 images in an actor's thread: 66 page faults and 1,459 us a sample, in one arena 5 and 1,217 us).
ALLOCATOR_ENV = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_ARENA_MAX": "1",
}


@contextlib.contextmanager
def connect() -> Iterator[bool]:
    """Be connected to Ray inside the block; an existing connection is used and left as it is.

    Gives whether nodes may join: not a cluster that is started here for the time of the block.

    Raises:
        ClusterError: the cluster that RAY_ADDRESS names cannot be joined, or RAY_AUTH_TOKEN_PATH names no token.
    """
    if ray.is_initialized():
        yield True
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    joined = bool(os.environ.get("RAY_ADDRESS"))

    def take_back() -> None:
        if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
            # Ray puts handlers of its own in their place, which end the process before anything is saved.
            signal.signal(signal.SIGTERM, on_sigterm)

    try:
        _join() if joined else _start()
    except SystemExit:
        # Of Ray's handler, for a SIGTERM that came meanwhile: it is answered as it would be before and after.
        take_back()
        ray.shutdown()
        signal.raise_signal(signal.SIGTERM)
        raise
    take_back()
    try:
        yield joined
    finally:
        ray.shutdown()


def _join() -> None:
    address = os.environ["RAY_ADDRESS"]
    head.await_answer(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as err:
        raise ClusterError(head.refusal(address)) from err
    except (ConnectionError, RuntimeError, ValueError) as err:
        if "Version mismatch" in str(err):
            raise ClusterError(
                f"RAY_ADDRESS {address!r}: runs other versions than this machine: {err}; run this as a job of the cluster "
                "(`genworker submit`), or here with the cluster's Python and Ray"
            ) from err
        raise ClusterError(
            f"RAY_ADDRESS {address!r}: cannot join this cluster: {err}; check the address, that `ray start --head` runs "
            "there, and RAY_AUTH_MODE / RAY_AUTH_TOKEN_PATH; unset RAY_ADDRESS to start a local one"
        ) from err


def _start() -> None:
    # ray.init turns token authentication on by itself unless RAY_AUTH_MODE says otherwise; without a token at hand it would
    # write one below HOME that others can read, which later `ray start` picks up and `ray job submit` does not.
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not named and os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        ray.init(
            address="local",
            num_cpus=max(_MIN_LOCAL_CPUS, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Else a worker per processor is started ahead of time, none of which an actor with its own environment can be.
            _system_config={"prestart_worker_first_driver": False},
        )
    except AuthenticationError as err:
        raise ClusterError(
            f"RAY_AUTH_TOKEN_PATH {os.environ.get('RAY_AUTH_TOKEN_PATH')!r}: holds no token; name a file that holds one, or "
            "unset it: a cluster that is started here makes its own"
        ) from err


def actor_options(
    *,
    num_cpus: int = 1,
    num_gpus: float = 0,
    node_labels: Mapping[str, str] | None = None,
    not_on: Collection[str] = (),
) -> dict[str, Any]:
    """Ray options of a bulk actor: its resources, no automatic restarts (the pool counts attempts itself).

    It is on none of the nodes whose ids are ``not_on``, unless ``node_labels`` ask for a node by id.
    """
    elsewhere = {NODE_ID: f"!in({','.join(sorted(not_on))})"} if not_on else {}
    selector = elsewhere | dict(node_labels or {})
    return {
        **({"label_selector": selector} if selector else {}),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": ALLOCATOR_ENV},
    }


def beside_driver(cls: type) -> Any:
    """``cls`` as an actor that needs nothing and lives on the driver's node, so that no other node takes it along."""
    node = ray.get_runtime_context().get_node_id()
    return ray.remote(cls).options(num_cpus=0, label_selector={NODE_ID: node})


def room(options: dict[str, Any], not_on: Collection[str] = ()) -> int:
    """How many actors of these options the nodes of the cluster can hold, whoever uses them now; all but those ``not_on``."""
    needs = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
    return sum(
        min(_fitting(name, node["Resources"].get(name, 0), need) for name, need in needs.items() if need)
        for node in nodes(options.get("label_selector", {}), not_on)
    )


def _fitting(name: str, there: float, need: float) -> int:
    # A hair more, because three times a third of a GPU is a whole one.
    if name == "GPU" and need < 1:  # Ray splits each by itself: two actors of 0.6 do not fit on one and a half
        return int(there) * int(1 / need + 1e-6)
    return int(there / need + 1e-6)


def nodes(labels: Mapping[str, str], not_on: Collection[str] = ()) -> list[dict[str, Any]]:
    """The nodes that are alive and have these labels, without those whose ids are ``not_on``, as Ray describes them."""
    alive = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in not_on)
    return [node for node in alive if labels.items() <= node["Labels"].items()]


def describe(options: dict[str, Any], not_on: Collection[str] = ()) -> str:
    """What an actor needs and what the cluster has besides the nodes ``not_on``, for messages."""
    labels = options.get("label_selector", {})
    per_actor = f"{options['num_cpus']} CPU" + (f" and {options['num_gpus']:g} GPU" if options["num_gpus"] else "")
    return f"each needs {per_actor}; {_inventory(labels, not_on)}"


def _inventory(labels: Mapping[str, str], not_on: Collection[str]) -> str:
    there = nodes(labels, not_on)
    cpus, gpus = (sum(node["Resources"].get(name, 0) for node in there) for name in ("CPU", "GPU"))
    kind = f" labelled {', '.join(f'{key}={value}' for key, value in labels.items())}" if labels else ""
    without = f", without {len(not_on)} that were left out" if not_on else ""
    return f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs on {len(there)} nodes{kind}{without}"


def await_workers(
    workers: int,
    options: dict[str, Any],
    *,
    wait_seconds: float,
    on_event: Callable[[str], None] = lambda _text: None,
) -> None:
    """Wait until the cluster could hold ``workers`` training workers with an actor's ``options``.

    Says what is missing every few seconds. The demand is shown to Ray's autoscaler as a placement group, which is given back.

    Raises:
        ClusterError: it has not the room, for ``wait_seconds``.
    """
    if room(options) >= workers:
        return
    labels = options.get("label_selector")
    bundle = {"CPU": options["num_cpus"], **({"GPU": options["num_gpus"]} if options["num_gpus"] else {})}
    group, started, told = None, time.monotonic(), -math.inf
    try:
        while (fits := room(options)) < workers:
            waited = time.monotonic() - started
            seen = f"{workers} workers were asked for, {describe(options)}, enough for {fits}"
            if waited >= wait_seconds:
                raise ClusterError(
                    f"{seen}; waited {waited:.0f} s: lower --workers, add nodes, or raise resources.wait_seconds, then run the "
                    "same command again"
                )
            if group is None:
                group = placement_group(
                    [bundle] * workers, bundle_label_selector=[dict(labels)] * workers if labels else None
                )
            if waited - told >= _SECONDS_BETWEEN_MESSAGES:
                told = waited
                on_event(f"waiting for the cluster: {seen}; gives up in {wait_seconds - waited:.0f} s")
            time.sleep(_POLL_SECONDS)
    finally:
        if group is not None:
            remove_placement_group(group)
