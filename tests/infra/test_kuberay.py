"""Every overlay of infra/kuberay, built by kustomize: held to the schemas of KubeRay and Kubernetes, and to its promises."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jsonschema
import kubernetes_validate
import pytest

from genworker.bulk.schedule import load_run
from genworker.cli import cli
from genworker.config import load_spec, preset_names
from genworker.submit.request import STOP_WAIT, STOP_WAIT_SECONDS, call_of
from genworker.training.spec import TrainSpec
from genworker.training.trainer import END_SECONDS
from tests.infra.files import INFRA
from tests.infra.hcl import load
from tests.infra.manifests import (
    LONGEST_NAME,
    OVERLAYS,
    broken_rules,
    build,
    cluster_spec,
    groups,
    job_spec,
    pods,
    ray_documents,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KUBERNETES = "1.33"
SCHEMAS = os.environ.get("KUBERAY_SCHEMAS", "")


def schema_of(kind: str) -> dict[str, Any]:
    """KubeRay's strict JSON schema of a kind."""
    text = (Path(SCHEMAS) / f"{kind.lower()}s.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


needs_schemas = pytest.mark.skipif(
    not SCHEMAS, reason="KUBERAY_SCHEMAS names no folder with rayjobs.schema.json, rayclusters.schema.json, ..."
)


@needs_schemas
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_takes_every_document(overlay: str) -> None:
    documents = ray_documents(overlay)
    assert documents
    for document in documents:
        jsonschema.Draft7Validator(schema_of(document["kind"])).validate(document)


@needs_schemas
def test_a_typo_is_found() -> None:
    """The schemas are strict ones: an unknown key deep down is refused."""
    document = copy.deepcopy(build("dev")["RayJob", "genworker-train"])
    cluster_spec(document)["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.Draft7Validator(schema_of("RayJob")).validate(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_every_document(overlay: str) -> None:
    """Core kinds, and the pods inside Ray's, pass the API's own schemas, in which an unknown key is an error."""
    for document in build(overlay).values():
        if document["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for name, template in pods(overlay):
        metadata = {"name": "pod", **template.get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        assert kubernetes_validate.validate(pod, KUBERNETES, strict=True), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_of_kuberay_is_broken(overlay: str) -> None:
    assert {document["kind"]: broken_rules(document) for document in ray_documents(overlay)} == {
        document["kind"]: [] for document in ray_documents(overlay)
    }


def gpus_of(found: Iterable[tuple[str, dict[str, Any]]]) -> int:
    """GPUs of all pods that groups start with."""
    limits = ((group, group["template"]["spec"]["containers"][0]["resources"]["limits"]) for _, group in found)
    return sum(group.get("replicas", 1) * int(limit.get("nvidia.com/gpu", 0)) for group, limit in limits)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda d: d["metadata"].update(name="n" * (LONGEST_NAME + 1)), "the name has more than"),
        (
            lambda d: d["spec"].update(suspend=True, shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0),
            "suspend",
        ),
        (lambda d: d["spec"].update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished needs"),
        (lambda d: d["spec"].update(submissionMode="InteractiveMode"), "backoffLimit excludes"),
        (lambda d: d["spec"].update(deletionStrategy={"deletionRules": []}), "deletionStrategy excludes"),
        (lambda d: d["spec"].update(deletionStrategy={"onSuccess": {}}), "deletionStrategy needs"),
        (
            lambda d: d["spec"].update(deletionStrategy={"onSuccess": {}, "deletionRules": []}),
            "onSuccess and onFailure",
        ),
        (lambda d: d["spec"].update(deletionStrategy={"deletionRules": [{"condition": {}}]}), "a deletion condition"),
        (lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(replicas=99), "replicas are outside"),
        (lambda d: cluster_spec(d)["autoscalerOptions"].pop("version"), "idleTimeoutSeconds needs"),
        (lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(suspend=True), "suspend excludes"),
        (lambda d: cluster_spec(d).pop("enableInTreeAutoscaling"), "but nothing scales"),
    ],
)
def test_each_rule_is_one(change: Callable[[dict[str, Any]], object], rule: str) -> None:
    """A job that breaks a rule is told so."""
    document = copy.deepcopy(build("dev")["RayJob", "genworker-generate"])
    assert broken_rules(document) == []
    change(document)
    assert [line for line in broken_rules(document) if rule in line]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_cluster_wants_a_token(overlay: str) -> None:
    for document in ray_documents(overlay):
        assert cluster_spec(document)["authOptions"]["mode"] == "token"
    text = json.dumps(list(build(overlay).values()))
    assert "AWS_SECRET" not in text
    assert "AWS_ACCESS_KEY" not in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_and_asks_for_what_it_uses(overlay: str) -> None:
    """What the namespace's level `restricted` demands, memory that is limited to what is asked for, and the policy's label."""
    namespace = build(overlay)["Namespace", "genworker"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = list(pods(overlay))
    assert found
    for name, template in found:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "genworker", name
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), name
        if "head" not in name or overlay != "dev":
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
        gpus = [resources[side].get("nvidia.com/gpu") for side in ("requests", "limits")]
        assert gpus[0] == gpus[1], name
    for document in ray_documents(overlay):
        if cluster_spec(document).get("enableInTreeAutoscaling"):  # a container that the operator adds to the head
            context = cluster_spec(document)["autoscalerOptions"]["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_drain_fits_into_the_grace(overlay: str) -> None:
    """Ray gives a stopped driver longer than it drains or saves, and the pod ends later still; Ray's own 3 s are replaced."""
    (drain,) = (option.default for option in cli.commands["generate"].params if option.name == "drain_timeout")
    assert isinstance(drain, float)
    assert drain < STOP_WAIT_SECONDS
    for preset in preset_names():
        stop = load_spec(TrainSpec, preset, (), {}).resources.stop_grace_seconds
        assert stop + END_SECONDS < STOP_WAIT_SECONDS, preset
    for document in ray_documents(overlay):
        for name, group in groups(document):
            spec = group["template"]["spec"]
            env = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
            wait = int(env[STOP_WAIT] or 0)
            assert STOP_WAIT_SECONDS <= wait < spec["terminationGracePeriodSeconds"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_heads_do_no_work_and_only_generation_is_on_spot(overlay: str) -> None:
    for document in ray_documents(overlay):
        for name, group in groups(document):
            if name == "head":
                assert group["rayStartParams"]["num-cpus"] == "0"
            tolerated = {item["key"] for item in group["template"]["spec"].get("tolerations", [])}
            assert ("spot" in tolerated) is (name == "generation")


def test_training_is_a_gang() -> None:
    """All workers at once: a fixed number, the label that schedulers look for, and in Kueue's overlay a queue."""
    for overlay in ("dev", "kueue"):
        job = build(overlay)["RayJob", "genworker-train"]
        assert job["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"
        assert "enableInTreeAutoscaling" not in cluster_spec(job)
        (group,) = cluster_spec(job)["workerGroupSpecs"]
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "genworker-training"
    assert job["spec"]["suspend"] is True
    workers = int(job["spec"]["entrypoint"].split("--workers ")[1])
    assert workers == gpus_of(groups(job))


def test_the_default_schedule_forbids_overlap() -> None:
    """A CronJob in production, and KubeRay's alpha kind in an overlay of its own, at the same time of the night."""
    cron = build("production")["CronJob", "genworker-nightly"]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert not [document for document in ray_documents("production") if document["kind"] != "RayCluster"]
    alpha = build("raycronjob")["RayCronJob", "genworker-nightly"]["spec"]
    assert (alpha["schedule"], alpha["timeZone"]) == (cron["schedule"], cron["timeZone"])
    policies = [rule["policy"] for rule in alpha["jobTemplate"]["deletionStrategy"]["deletionRules"]]
    assert "DeleteSelf" in policies  # it keeps no history limits


def test_the_schedule_uses_the_cluster_that_is_there() -> None:
    """The CronJob talks to the head's service with the secret that the operator makes for that cluster."""
    built = build("production")
    (cluster,) = ray_documents("production")
    name = cluster["metadata"]["name"]
    spec = built["CronJob", "genworker-nightly"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    env = {item["name"]: item["value"] for item in spec["containers"][0]["env"]}
    assert env["RAY_ADDRESS"] == f"http://{name}-head-svc:8265"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["token"]["secret"]["secretName"] == name
    (group,) = cluster_spec(cluster)["workerGroupSpecs"]
    assert group["minReplicas"] == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_accounts_are_those_of_the_roles(overlay: str) -> None:
    """Pods run as accounts that exist and that terraform binds to the role of their work; no account token but the head's."""
    roles = set(load(INFRA / "terraform")["locals"][0]["roles"])
    accounts = {name for kind, name in build(overlay) if kind == "ServiceAccount"}
    assert accounts == {f"genworker-{role}" for role in roles}
    for document in ray_documents(overlay):
        scaling = cluster_spec(document).get("enableInTreeAutoscaling", False)
        for name, group in groups(document):
            spec = group["template"]["spec"]
            wanted = "trainer" if document["metadata"]["name"].endswith("train") else "generator"
            assert spec["serviceAccountName"] == f"genworker-{wanted}"
            assert spec["automountServiceAccountToken"] is (scaling and name == "head")


def test_the_network_is_closed() -> None:
    """Everything is denied first; then Ray's pods reach each other, DNS, S3 and the credentials' agent, and no more."""
    policies = {
        name: document["spec"] for (kind, name), document in build("production").items() if kind == "NetworkPolicy"
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ray = policies["ray"]
    inside, operator, monitoring = ray["ingress"]
    assert inside == {"from": [{"podSelector": ray["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert [port["port"] for port in monitoring["ports"]] == [8080]
    blocks = [peer["ipBlock"] for rule in ray["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert blocks == [{"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, {"cidr": "169.254.170.23/32"}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_entrypoint_is_a_command_of_ours(overlay: str) -> None:
    """The arguments parse, GPUs are asked for where the pods have them, and the URLs lie where the roles may write."""
    for document in ray_documents(overlay):
        if document["kind"] == "RayCluster":
            continue
        text = re.sub(r"\$\(.*?\)|\$\w+", "2026-11-23", job_spec(document)["entrypoint"].rpartition("&& ")[2])
        check_call(shlex.split(text), gpus=bool(gpus_of(groups(document))))


def check_call(words: list[str], *, gpus: bool) -> None:
    python, script, *arguments = words
    assert python == "python"
    name = Path(script).stem
    assert script == f"/opt/jobs/{name}.py"
    command = cli.commands[name]
    with click.Context(cli, **cli.context_settings) as group:
        params = command.make_context(name, arguments, parent=group, resilient_parsing=False).params
    if name == "train":
        assert params["out"].startswith("s3://my-bucket/runs/")
        return
    out, use_gpu = params["out"], params["use_gpu"]
    if params["spec_file"]:
        flags = {"bundle": params["bundle"], "num_samples": params["num_samples"]}
        spec = load_run(params["spec_file"], params["overrides"], flags, date=params["date"].date())
        out, use_gpu = spec.out, spec.use_gpu
        assert out.endswith("/dt=2026-11-23")
        assert spec.seed == 20261123
    assert out.startswith("s3://my-bucket/datasets/")
    assert use_gpu is gpus


def test_the_nightly_command(tmp_path: Path) -> None:
    """A shell makes of it a submit of the shipped spec whose run id is the day, and of a job that writes where it may."""
    spec = build("production")["CronJob", "genworker-nightly"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    stub = tmp_path / "genworker"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environment = {item["name"]: item["value"] for item in container["env"]}
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "DAY": "2026-11-23"}
    done = subprocess.run(
        [*container["command"], *container["args"]], env=environment, capture_output=True, text=True, check=True
    )
    name, *words = done.stdout.splitlines()
    with click.Context(cli, **cli.context_settings) as group:
        params = cli.commands[name].make_context(name, words, parent=group).params
    assert params["address"] == environment["RAY_ADDRESS"]
    assert params["run_id"] == "2026-11-23"
    command, arguments = call_of(params["command"], params["arguments"], params["run_id"])
    check_call(["python", f"/opt/jobs/{command}.py", *arguments], gpus=True)
