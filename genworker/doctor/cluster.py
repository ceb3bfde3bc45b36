"""The Ray cluster that commands would use: whether it can be joined, and what it offers.

In: the environment. Out: findings. It joins the cluster that RAY_ADDRESS names, and starts none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import ray

from genworker import cluster
from genworker.doctor.base import Finding
from genworker.doctor.nodes import check_nodes
from genworker.errors import ClusterError


def check_cluster() -> Iterator[Finding]:
    """Yield findings about authentication and the nodes."""
    yield _authentication()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("ray", "ok", "RAY_ADDRESS is not set: commands start a cluster of their own on this machine")
        return
    try:
        with cluster.connect():
            nodes = cluster.nodes({})
            resources = ray.cluster_resources()
            of_nodes = list(check_nodes())
    except ClusterError as err:
        yield Finding("ray", "fail", str(err), "see the message")
        return
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    seen = f"{address}: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    if cpus < 1:
        yield Finding("ray", "fail", seen, "no node offers a CPU to actors: add a node with CPUs, or wait for one")
    else:
        yield Finding("ray", "ok", seen)
    yield from of_nodes


def _authentication() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if mode == "disabled":
        return Finding(
            "ray token",
            "warn",
            "RAY_AUTH_MODE is disabled: whoever reaches the cluster's ports can run programs on it",
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on all nodes and clients",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("ray token", "ok", "from RAY_AUTH_TOKEN")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if path.is_file():
        return _token_file(path)
    if named:
        return Finding(
            "ray token", "fail", f"RAY_AUTH_TOKEN_PATH {path}: no such file", "put the cluster's token there"
        )
    if mode == "token" and os.environ.get("RAY_ADDRESS"):
        fix = "set RAY_AUTH_TOKEN_PATH to a file of mode 600 that holds the cluster's token"
        return Finding("ray token", "fail", "RAY_AUTH_MODE is token, and there is none", fix)
    return Finding("ray token", "ok", "made for each local cluster, never stored")


def _token_file(path: Path) -> Finding:
    if path.stat().st_mode & 0o077:
        return Finding("ray token", "warn", f"{path} can be read by others", f"chmod 600 {path}")
    return Finding("ray token", "ok", f"from {path}")
