"""The bucket and the roles of infra/terraform, parsed. What the roles allow is compared with the code in tests/ray."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import pytest
from botocore.awsrequest import AWSResponse
from urllib3 import HTTPResponse

from genworker.reading import verify
from genworker.stores import open_store
from tests.fakes import dataset
from tests.fakes.bundle import save_bundle
from tests.infra import hcl
from tests.infra.files import INFRA, ROOT, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import S3Server

FOLDER = INFRA / "terraform"
ROLES = ("trainer", "generator", "reader")
PROBE = "/.genworker/probe/"


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    return hcl.load(FOLDER)


@pytest.fixture(scope="module")
def policies() -> dict[str, dict[str, Any]]:
    return hcl.role_policies(FOLDER)


def test_the_bucket_is_closed_and_encrypted(blocks: dict[str, Any]) -> None:
    """Public access is blocked four ways, ACLs are off, objects are encrypted by our key, and only TLS is answered."""
    resources = blocks["resource"]
    block = resources["aws_s3_bucket_public_access_block"]["this"]
    for key in ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"):
        assert block[key] is True
    ownership = resources["aws_s3_bucket_ownership_controls"]["this"]["rule"][0]
    assert ownership["object_ownership"] == "BucketOwnerEnforced"
    rule = resources["aws_s3_bucket_server_side_encryption_configuration"]["this"]["rule"][0]
    assert rule["bucket_key_enabled"] is True
    assert rule["apply_server_side_encryption_by_default"][0]["sse_algorithm"] == "aws:kms"
    assert resources["aws_kms_key"]["bucket"]["enable_key_rotation"] is True
    (tls,) = (s for s in blocks["data"]["aws_iam_policy_document"]["bucket"]["statement"] if s["sid"] == "OnlyTls")
    assert (tls["effect"], tls["condition"][0]["variable"]) == ("Deny", "aws:SecureTransport")


def test_versioning_is_a_choice(blocks: dict[str, Any]) -> None:
    assert blocks["variable"]["versioning"]["default"] is False
    status = blocks["resource"]["aws_s3_bucket_versioning"]["this"]["versioning_configuration"][0]["status"]
    assert status == '${var.versioning ? "Enabled" : "Suspended"}'


def test_the_lifecycle_removes_what_nobody_sees(blocks: dict[str, Any], policies: dict[str, dict[str, Any]]) -> None:
    """Multiparts, probes and old versions go; no rule touches an object that a reader could want.

    Probes stay where a role may put and not delete, and only there empty objects are taken for such.
    """
    rules = {rule["id"]: rule for rule in blocks["resource"]["aws_s3_bucket_lifecycle_configuration"]["this"]["rule"]}
    assert all(rule["status"] == "Enabled" for rule in rules.values())
    assert 1 <= rules["abort-multiparts"]["abort_incomplete_multipart_upload"][0]["days_after_initiation"] <= 7
    expiring = {name for name, rule in rules.items() if "days" in rule.get("expiration", [{}])[0]}
    assert expiring == {"expire-probes"}
    (limits,) = rules["expire-probes"]["filter"][0]["and"]
    assert limits == {"prefix": "datasets/", "object_size_less_than": 1}
    puts = [statement for statement in policies["generator"]["statement"] if "s3:PutObject" in statement["actions"]]
    assert [arn for statement in puts for arn in statement["resources"]] == [f"{hcl.BUCKET_ARN}/{limits['prefix']}*"]


def test_the_generator_cannot_delete_or_replace(blocks: dict[str, Any], policies: dict[str, dict[str, Any]]) -> None:
    """Neither generator nor reader has a delete, and the bucket itself refuses a put that could replace a shard."""
    assert "s3:DeleteObject" in hcl.allowed_actions(policies["trainer"])
    for role in ("generator", "reader"):
        assert not [action for action in hcl.allowed_actions(policies[role]) if "Delete" in action]
    assert not [action for policy in policies.values() for action in hcl.allowed_actions(policy) if "*" in action]
    (dynamic,) = blocks["data"]["aws_iam_policy_document"]["bucket"]["dynamic"]
    fence = dynamic["statement"]["content"][0]
    assert (fence["effect"], fence["actions"]) == ("Deny", ["s3:PutObject"])
    condition = fence["condition"][0]
    assert (condition["test"], condition["variable"], condition["values"]) == ("Null", "s3:if-none-match", ["true"])
    assert f"{hcl.BUCKET_ARN}/datasets/*/data/*" in fence["resources"]


def test_the_instance_profiles_of_the_cluster_exist(blocks: dict[str, Any]) -> None:
    """cluster.yaml names profiles that are made here, and the head may start instances with the workers' two roles."""
    profiles = {f"genworker-{role}" for role in ROLES} | {"genworker-head"}
    assert {profile["name"] for profile in blocks["resource"]["aws_iam_instance_profile"].values()} == {
        "genworker-${each.key}",
        "genworker-head",
    }
    types = read_yaml(ROOT / "cluster.yaml")["available_node_types"]
    used = {name: group["node_config"]["IamInstanceProfile"]["Name"] for name, group in types.items()}
    assert used == {"head": "genworker-head", "training": "genworker-trainer", "generation": "genworker-generator"}
    assert set(used.values()) <= profiles
    statements = blocks["data"]["aws_iam_policy_document"]["autoscaler"]["statement"]
    (passing,) = (statement for statement in statements if statement["actions"] == ["iam:PassRole"])
    assert passing["resources"] == ['${aws_iam_role.this["trainer"].arn}', '${aws_iam_role.this["generator"].arn}']


def test_every_reference_leads_somewhere(blocks: dict[str, Any]) -> None:
    """Each var, local, data and resource that an expression names is defined."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.tf"))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == set(blocks["variable"])
    for kind, name in re.findall(r"\bdata\.(\w+)\.(\w+)", text):
        assert name in blocks["data"][kind]
    for kind, name in re.findall(r"(?<![\w.])(aws_\w+)\.(\w+)", text):
        assert name in blocks["resource"].get(kind, {}) or name in blocks["data"].get(kind, {}), f"{kind}.{name}"
    assert all(variable["description"] for variable in blocks["variable"].values())


def test_a_dataset_is_made_without_the_right_to_delete(
    moto: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DELETE is answered with 403, puts go through, and what stays are empty objects that the lifecycle expires."""
    from genworker.stores import s3

    def refuse(request: Any, **_context: object) -> AWSResponse:
        return AWSResponse(request.url, 403, {}, HTTPResponse(io.BytesIO(), preload_content=False))

    make = s3.make_client

    def make_refusing() -> Any:
        client = make()
        client.meta.events.register("before-send.s3.DeleteObject", refuse)
        return client

    point_at(moto)
    monkeypatch.setattr(s3, "make_client", make_refusing)
    url = f"s3://{moto.new_bucket()}/datasets/tiny"
    store = open_store(url)
    assert store.conditional
    dataset.publish(url, dataset.make_plan(num_samples=4))
    assert verify(url) == []
    left = [info.size for info in store.list() if PROBE.lstrip("/") in info.key]
    assert left
    assert set(left) == {0}


def test_only_probes_are_empty(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """What the lifecycle rule expires by its size is nothing that a dataset or a bundle is made of."""
    point_at(moto)
    root = f"s3://{moto.new_bucket()}"
    dataset.publish(f"{root}/datasets/tiny", dataset.make_plan(num_samples=4))
    save_bundle(f"{root}/runs/tiny/bundle")
    stored = [info for url in ("datasets/tiny", "runs/tiny") for info in open_store(f"{root}/{url}").list()]
    assert len(stored) > 5
    assert all(info.size > 0 for info in stored)
