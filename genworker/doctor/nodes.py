"""What the nodes of a cluster run: versions and kind of processor, asked of each by a task of its own.

In: a joined cluster. Out: findings, of what differs from this machine or among the nodes. The tasks take no processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ray
import torch
from ray.exceptions import RayError

import genworker
from genworker import cluster
from genworker.device import device_class, pick_device
from genworker.doctor.base import Finding

_ANSWER_SECONDS = 60.0
_DEVICE = "device"


def check_nodes() -> Iterator[Finding]:
    """Yield findings about the nodes of the cluster that this process has joined."""
    asked = {}
    for node in cluster.nodes({}):
        options = {"num_cpus": 0, "max_retries": 0, "label_selector": {cluster.NODE_ID: node["NodeID"]}}
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        asked[name] = ray.remote(software).options(**options).remote()
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    answers: dict[str, dict[str, str]] = {}
    for name, reference in asked.items():
        try:
            answers[name] = ray.get(reference, timeout=0)
        except RayError as err:  # late, or it has no genworker
            reason = str(err).strip().splitlines()[-1]
            fix = "give the node genworker, the same image as the others, and look whether it is overloaded"
            yield Finding("nodes", "fail", f"{name}: runs no task of genworker: {reason}", fix)
    yield from compare(software(), answers)


def software() -> dict[str, str]:
    """What decides bits and whether processes understand each other here, by name."""
    device = pick_device(use_gpu=torch.cuda.is_available())
    versions = {"genworker": genworker.__version__, "ray": ray.__version__, "torch": torch.__version__}
    return {**versions, _DEVICE: device_class(device)}


def compare(here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Yield a finding for what differs: versions from ``here``, and kinds of processor among ``nodes``, by their names.

    This machine's own processor is not compared: a driver computes nothing.
    """
    fine = True
    for key in here:
        found: dict[str, list[str]] = {}
        for name, answer in sorted(nodes.items()):
            found.setdefault(answer[key], []).append(name)
        seen = "; ".join(f"{value} on {', '.join(names)}" for value, names in sorted(found.items()))
        if key == _DEVICE and len(found) > 1:
            fine = False
            fix = (
                "a dataset or run keeps to one kind: choose nodes with --node-label, resources.node_labels or --use-gpu"
            )
            yield Finding("node devices", "warn", seen, fix)
        elif key != _DEVICE and found.keys() - {here[key]}:
            fine = False
            fix = "use one image on all nodes; on machines that differ, plans are refused and Ray may not join"
            yield Finding(f"node {key}", "warn", f"{here[key]} here; {seen}", fix)
    if fine and nodes:
        yield Finding("nodes", "ok", ", ".join(f"{key} {value}" for key, value in next(iter(nodes.values())).items()))
