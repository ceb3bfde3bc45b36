"""The bucket and the roles of infra/terraform, parsed; the roles compared with what the code asks of an S3 server."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from botocore.awsrequest import AWSResponse
from urllib3 import HTTPResponse

import genworker
from genworker.reading import verify
from genworker.stores import open_store
from tests.fakes import dataset
from tests.fakes.bundle import save_bundle
from tests.fakes.models import GREY
from tests.infra import hcl
from tests.infra.files import INFRA, ROOT, read_yaml
from tests.infra.hcl import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import S3Server

FOLDER = INFRA / "terraform"
ROLES = ("trainer", "generator", "reader")
# S3 authorises HEAD of an object as reading it.
ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
# Deleting one's own probe is tried and may fail: the object is empty and expires.
PROBE = "/.genworker/probe/"


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    return hcl.load(FOLDER)


@pytest.fixture(scope="module")
def policies(blocks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The policy document of each role."""
    (local,) = blocks["locals"]
    names = {
        role: re.fullmatch(r"\$\{data\.aws_iam_policy_document\.(\w+)\.json\}", text)
        for role, text in local["roles"].items()
    }
    documents = blocks["data"]["aws_iam_policy_document"]
    return {role: documents[match[1]] for role, match in names.items() if match}


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


def test_the_lifecycle_removes_what_nobody_sees(blocks: dict[str, Any]) -> None:
    """Multiparts, empty objects and old versions go; no rule touches an object that a reader could want."""
    rules = {rule["id"]: rule for rule in blocks["resource"]["aws_s3_bucket_lifecycle_configuration"]["this"]["rule"]}
    assert all(rule["status"] == "Enabled" for rule in rules.values())
    assert 1 <= rules["abort-multiparts"]["abort_incomplete_multipart_upload"][0]["days_after_initiation"] <= 7
    expiring = {name for name, rule in rules.items() if "days" in rule.get("expiration", [{}])[0]}
    assert expiring == {"expire-probes"}
    assert rules["expire-probes"]["filter"] == [{"object_size_less_than": 1}]


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


def requests_in(log: str, bucket: str) -> set[Request]:
    """What a server's log says was asked of a bucket."""
    found = set()
    for method, target in re.findall(r'"(?:\x1b\[\d+m)*([A-Z]+) (\S+) HTTP/', log):
        url = urlsplit(target)
        name, _, key = unquote(url.path).lstrip("/").partition("/")
        if name != bucket:
            continue
        query = parse_qs(url.query, keep_blank_values=True)
        if not key:
            assert (method, query.get("list-type")) == ("GET", ["2"]), target
            found.add(Request("s3:ListBucket", prefix=query["prefix"][0] if "prefix" in query else None))
        else:
            assert not {"uploads", "uploadId"} & query.keys(), target  # no multiparts: one put is one object
            found.add(Request(ACTIONS[method], key))
    return found


@pytest.fixture(scope="module")
def asked(ray_cluster: int, moto: S3Server) -> dict[str, set[Request]]:
    """What each kind of work asked of the server: training on a stored dataset, generation, and reading."""
    from genworker.bulk.job import generate
    from genworker.bulk.request import GenerateSpec
    from genworker.training import trainer
    from tests.ray.runs import spec_for

    bucket = moto.new_bucket()
    root = f"s3://{bucket}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment.items():
            patch.setenv(name, value)
        dataset.publish(f"{root}/sources/clothes", dataset.make_plan(schema=GREY, num_samples=64, samples_per_shard=32))
        training = spec_for().training.model_dump() | {
            "images": 96,
            "report_every_images": 32,
            "checkpoint_every_images": 32,
            "keep_checkpoints": 1,
            "callbacks": ["tensorboard"],
        }
        spec = spec_for(
            data={"name": "parquet", "url": f"{root}/sources/clothes", "image_size": 28, "channels": 1},
            training=training,
            resources={"workers": 1},
        )

        recorded = {}
        with moto.log.open(encoding="utf-8", errors="replace") as log:
            log.read()
            assert trainer.train(spec, f"{root}/runs/gan").finished
            recorded["trainer"] = requests_in(log.read(), bucket)
            out = f"{root}/datasets/clothes"
            generate(GenerateSpec(bundle=f"{root}/runs/gan/bundle", out=out, num_samples=256, actors=1))
            recorded["generator"] = requests_in(log.read(), bucket)
            assert sum(len(batch.sample_index) for batch in genworker.open(out).batches()) == 256
            assert verify(out) == []
            recorded["reader"] = requests_in(log.read(), bucket)
    return recorded


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_its_work_asks_and_no_more(
    asked: dict[str, set[Request]], policies: dict[str, dict[str, Any]], role: str
) -> None:
    """Every request is allowed, but for the deletion of a probe; every action that is allowed was asked for."""
    refused = {request for request in asked[role] if not hcl.allows(policies[role], request)}
    if role == "generator":
        assert {(request.action, PROBE in request.key) for request in refused} <= {("s3:DeleteObject", True)}
    else:
        assert not refused
    assert {request.action for request in asked[role] - refused} == hcl.allowed_actions(policies[role])


def test_a_dataset_is_made_without_the_right_to_delete(
    moto: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DELETE is answered with 403, puts go through, and what stays is one empty object that the lifecycle expires."""
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
    (left,) = (info for info in store.list() if PROBE.lstrip("/") in info.key)
    assert left.size == 0


def test_only_probes_are_empty(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """What the lifecycle rule expires by its size is nothing that a dataset or a bundle is made of."""
    point_at(moto)
    root = f"s3://{moto.new_bucket()}"
    dataset.publish(f"{root}/datasets/tiny", dataset.make_plan(num_samples=4))
    save_bundle(f"{root}/runs/tiny/bundle")
    stored = [info for url in ("datasets/tiny", "runs/tiny") for info in open_store(f"{root}/{url}").list()]
    assert len(stored) > 5
    assert all(info.size > 0 for info in stored)
