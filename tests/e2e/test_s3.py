"""The command line against S3 servers over HTTP: one that honours conditional puts, one that ignores them.

The variables of the environment are all that a command is told about a server.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genworker.bulk.plan import MANIFEST_KEY, PLAN_KEY
from genworker.stores import open_store
from tests import canaries
from tests.chaos.jobs import flags_of, trigger
from tests.datasets import all_samples, published_digests, stored_shards
from tests.fakes.bundle import save_bundle
from tests.processes import run, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import S3Server

NUM_SAMPLES, NUM_SHARDS = 15_000, 100
JOB = {"num_samples": NUM_SAMPLES, "samples_per_shard": NUM_SAMPLES // NUM_SHARDS, "seed": 6, "actors": 2}
WRONG_SECRET = "wrong-secret-0123456789"  # noqa: S105


def command(bundle: str, out: str) -> list[str]:
    """A job of many small shards, so that there is a middle to be hit in."""
    return ["genworker", "generate", bundle, "--out", out, *flags_of(JOB)]


@pytest.fixture(scope="module")
def reference(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the dataset as one process makes it in a folder, without Ray."""
    folder = tmp_path_factory.mktemp("reference")
    out = str(folder / "out")
    trigger({**JOB, "bundle": tiny_bundle, "out": out}, str(folder / "counted.json"))
    return published_digests(out)


@pytest.mark.slow
@pytest.mark.parametrize("server_name", ["moto", "rclone"])
def test_a_killed_driver_on_s3(
    request: pytest.FixtureRequest,
    point_at: Callable[[S3Server], None],
    reference: dict[str, str],
    tmp_path: Path,
    server_name: str,
) -> None:
    """From a bundle in S3 to a dataset in S3, across a kill -9: as in a folder, byte for byte, conditional puts or not."""
    server: S3Server = request.getfixturevalue(server_name)
    point_at(server)
    bucket = server.new_bucket()
    bundle, out = save_bundle(f"s3://{bucket}/models/tiny"), f"s3://{bucket}/data/set"
    assert open_store(out).conditional is (server_name == "moto")

    with running(command(bundle, out), tmp_path, server.environment) as first:
        first.wait_until(lambda: len(stored_shards(out)) >= 3)
        first.kill()
    kept = stored_shards(out)
    assert 3 <= len(kept) < NUM_SHARDS
    assert MANIFEST_KEY not in {info.key for info in open_store(out).list()}

    second = run(command(bundle, out), tmp_path, server.environment)
    assert second.process.returncode == 0, second.stderr
    assert f"published: {out}, 15,000 samples in 100 shards" in second.stdout
    assert f"made:      {(NUM_SHARDS - len(kept)) * NUM_SAMPLES // NUM_SHARDS:,} samples" in second.stdout
    assert published_digests(out) == reference

    check = run(["genworker", "verify", out, "--resample", "2"], tmp_path, server.environment)
    assert check.process.returncode == 0, check.stdout + check.stderr
    assert "ok: 15,000 samples in 100 shards, 2 of them remade with equal bytes" in check.stdout

    assert_read_alike_without_genworker(server, bucket, out)
    printed = "".join(program.stdout + program.stderr for program in (first, second, check))
    # What the commands left below their HOME is searched too.
    texts = [("printed", printed.encode()), *canaries.files_below(tmp_path), *canaries.stored(server, bucket)]
    assert len(canaries.assert_nowhere(canaries.credentials_of(server), texts)) > NUM_SHARDS


def assert_read_alike_without_genworker(server: S3Server, bucket: str, out: str) -> None:
    """Fetch all shards with boto3, read them with pyarrow and Pillow, and compare with what `genworker.open` gives."""
    listed = server.client.list_objects_v2(Bucket=bucket, Prefix="data/set/data/")["Contents"]
    keys = sorted(item["Key"] for item in listed)
    assert len(keys) == NUM_SHARDS
    bodies = [server.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]
    rows = [row for body in bodies for row in pq.read_table(io.BytesIO(body)).to_pylist()]
    indices, pixels, labels = all_samples(out)
    assert [row["sample_index"] for row in rows] == indices.tolist() == list(range(NUM_SAMPLES))
    assert labels is not None
    assert [row["label"] for row in rows] == labels.tolist()
    for row in rows[:: NUM_SAMPLES // 100]:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert np.array_equal(np.asarray(image), pixels[row["sample_index"], :, :, 0])


def test_wrong_credentials_end_in_one_message(
    rclone: S3Server, point_at: Callable[[S3Server], None], tiny_bundle: str, tmp_path: Path
) -> None:
    """Exit code 1 and a message that names the endpoint and the variables, no secret and no traceback."""
    point_at(rclone)
    bucket = rclone.new_bucket()
    environment = rclone.environment | {"AWS_SECRET_ACCESS_KEY": WRONG_SECRET}
    program = run(command(tiny_bundle, f"s3://{bucket}/out"), tmp_path, environment)
    assert program.process.returncode == 1
    message = program.stdout + program.stderr
    assert message.count("Error: ") == 1
    for part in (bucket, rclone.endpoint, "AWS_SECRET_ACCESS_KEY"):
        assert part in message
    for part in ("Traceback", WRONG_SECRET, rclone.access_key, rclone.secret_key):
        assert part not in message
    assert list(open_store(f"s3://{bucket}").list()) == []


@pytest.mark.parametrize("server_name", ["moto", "rclone"])
def test_a_missing_bucket_ends_in_one_message(
    request: pytest.FixtureRequest, tiny_bundle: str, tmp_path: Path, server_name: str
) -> None:
    """Exit code 1 and a message that says to create the bucket, no traceback."""
    server: S3Server = request.getfixturevalue(server_name)
    program = run(command(tiny_bundle, "s3://no-such-bucket-here/out"), tmp_path, server.environment)
    assert program.process.returncode == 1
    message = program.stdout + program.stderr
    assert message.count("Error: ") == 1
    assert "no-such-bucket-here" in message
    assert "create the bucket" in message
    assert "Traceback" not in message


def test_a_bundle_in_a_missing_bucket_ends_in_one_message(moto: S3Server, tmp_path: Path) -> None:
    """A wrong bundle URL writes nothing where the dataset was to be."""
    program = run(command("s3://no-such-bucket-here/bundle", str(tmp_path / "out")), tmp_path, moto.environment)
    assert program.process.returncode == 1
    assert (program.stdout + program.stderr).count("Error: ") == 1
    assert "Traceback" not in program.stderr
    assert not (tmp_path / "out" / PLAN_KEY).exists()
