"""What training, generation and reading ask of an S3 server, recorded, and compared with the roles of infra/terraform."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import genworker
from genworker.bulk.job import generate
from genworker.bulk.request import GenerateSpec
from genworker.reading import verify
from genworker.training import trainer
from tests.fakes import dataset
from tests.fakes.models import GREY
from tests.infra import hcl
from tests.infra.files import INFRA
from tests.infra.hcl import Request
from tests.ray.runs import spec_for

if TYPE_CHECKING:
    from tests.servers import S3Server

# S3 authorises HEAD of an object as reading it.
ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
# Deleting one's own probe is tried and may fail: the object is empty and expires.
PROBE = "/.genworker/probe/"


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
@pytest.mark.parametrize("role", ["trainer", "generator", "reader"])
def test_a_role_may_do_what_its_work_asks_and_no_more(asked: dict[str, set[Request]], role: str) -> None:
    """Every request is allowed, but for the deletion of a probe; every action that is allowed was asked for."""
    policies: dict[str, dict[str, Any]] = hcl.role_policies(INFRA / "terraform")
    refused = {request for request in asked[role] if not hcl.allows(policies[role], request)}
    if role == "generator":
        assert {(request.action, PROBE in request.key) for request in refused} <= {("s3:DeleteObject", True)}
    else:
        assert not refused
    assert {request.action for request in asked[role] - refused} == hcl.allowed_actions(policies[role])
