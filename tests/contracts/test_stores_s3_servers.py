"""What the S3 store says and does when a server refuses: wrong credentials, no bucket, nobody there, no conditions."""

from __future__ import annotations

import base64
import hashlib
import pickle
import time
from typing import TYPE_CHECKING

import pytest

from genworker.errors import ObjectExistsError, StoreAccessError, StoreError, UsageError
from genworker.stores import open_store
from genworker.stores.s3 import MAX_OBJECT_BYTES
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from genworker.stores import Store
    from tests.servers import S3Server

WRONG_SECRET = "wrong-secret-0123456789"  # noqa: S105


def calls(store: Store) -> list[Callable[[], object]]:
    """One call of each method, list's taken to its first item."""
    return [
        lambda: store.put("key", b"x"),
        lambda: store.put("key", b"x", overwrite=True),
        lambda: store.get("key"),
        lambda: store.head("key"),
        lambda: list(store.list()),
        lambda: store.delete("key"),
        lambda: store.conditional,
    ]


@pytest.mark.parametrize("known_key", [True, False])
def test_wrong_credentials_are_an_access_error(
    rclone: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch, known_key: bool
) -> None:
    """Every method names the bucket, the endpoint and the variables to set, and never the credentials."""
    point_at(rclone)
    bucket = rclone.new_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG_SECRET)
    if not known_key:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDWRONG0123456789")
    for call in calls(open_store(f"s3://{bucket}")):
        with pytest.raises(StoreAccessError) as caught:
            call()
        message = str(caught.value)
        assert bucket in message
        assert rclone.endpoint in message
        assert "AWS_SECRET_ACCESS_KEY" in message
        for secret in (WRONG_SECRET, rclone.secret_key, rclone.access_key, "AKIDWRONG"):
            assert secret not in message


def test_no_credentials_are_an_access_error(
    rclone: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any credentials the message says which variables are looked for."""
    point_at(rclone)
    bucket = rclone.new_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for call in calls(open_store(f"s3://{bucket}")):
        with pytest.raises(StoreAccessError, match="AWS_ACCESS_KEY_ID"):
            call()


def test_a_missing_profile_is_an_access_error(
    moto: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile that is nowhere configured is named."""
    point_at(moto)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(StoreAccessError, match="no-such-profile"):
        open_store("s3://some-bucket").get("key")


@pytest.mark.parametrize("server_name", ["moto", "rclone"])
def test_a_missing_bucket_is_an_access_error(
    request: pytest.FixtureRequest, point_at: Callable[[S3Server], None], server_name: str
) -> None:
    """A missing bucket is told from a missing key in every method, head included, whose bare 404 could be either."""
    server: S3Server = request.getfixturevalue(server_name)
    point_at(server)
    for call in calls(open_store("s3://no-such-bucket-here/prefix")):
        with pytest.raises(StoreAccessError, match=r"no-such-bucket-here.*create the bucket"):
            call()


def test_an_unreachable_server_is_an_error_soon(
    moto: S3Server, point_at: Callable[[S3Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody listens, the message names the endpoint, after as many attempts as AWS_MAX_ATTEMPTS allows."""
    point_at(moto)
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    started = time.monotonic()
    for call in calls(open_store("s3://bucket")):
        with pytest.raises(StoreError, match=endpoint) as caught:
            call()
        assert type(caught.value) is StoreError  # another attempt may succeed
        assert "AWS_ENDPOINT_URL" in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_server_that_honours_conditions_is_found_out(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """The probe says True and leaves no object behind."""
    point_at(moto)
    store = open_store(f"s3://{moto.new_bucket()}/prefix")
    assert store.conditional is True
    assert list(store.list()) == []


def test_a_server_that_ignores_conditions_is_found_out(rclone: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """The probe says False and leaves no object behind; a put then looks first and still keeps what is there."""
    point_at(rclone)
    store = open_store(f"s3://{rclone.new_bucket()}/prefix")
    assert store.conditional is False
    assert list(store.list()) == []
    store.put("key", b"first")
    with pytest.raises(ObjectExistsError):
        store.put("key", b"second")
    assert store.get("key") == b"first"


@pytest.mark.parametrize("server_name", ["moto", "rclone"])
def test_objects_of_other_programs_have_a_digest(
    request: pytest.FixtureRequest, point_at: Callable[[S3Server], None], server_name: str
) -> None:
    """Without our metadata head reads the object; a multipart upload's checksum of checksums is not taken for one."""
    server: S3Server = request.getfixturevalue(server_name)
    point_at(server)
    bucket = server.new_bucket()
    server.client.put_object(Bucket=bucket, Key="plain", Body=b"plain")
    upload = server.client.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = server.client.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"part")
    server.client.complete_multipart_upload(
        Bucket=bucket,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]},
    )
    store = open_store(f"s3://{bucket}")
    for key, data in (("plain", b"plain"), ("parts", b"part")):
        info = store.head(key)
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_folder_markers_are_not_listed(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """The empty "folder" objects that web consoles make are no objects of a store."""
    point_at(moto)
    bucket = moto.new_bucket()
    for key in ("prefix/", "prefix/folder/", "prefix/folder/object", "prefix-of-another/object"):
        moto.client.put_object(Bucket=bucket, Key=key, Body=b"")
    assert [info.key for info in open_store(f"s3://{bucket}/prefix").list()] == ["folder/object"]


def test_objects_carry_their_digest(moto: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """Other programs find the SHA-256 in the metadata of each object."""
    point_at(moto)
    bucket = moto.new_bucket()
    open_store(f"s3://{bucket}").put("key", b"data")
    head = moto.client.head_object(Bucket=bucket, Key="key")
    assert head["Metadata"] == {"sha256": hashlib.sha256(b"data").hexdigest()}


def test_no_credential_is_pickled_or_shown(rclone: S3Server, point_at: Callable[[S3Server], None]) -> None:
    """A store that has made its client and signed requests holds nothing of that in its pickle or repr."""
    point_at(rclone)
    store = open_store(f"s3://{rclone.new_bucket()}")
    store.put("key", b"x")
    shown = pickle.dumps(store) + repr(store).encode() + str(vars(store)).encode()
    for secret in (rclone.secret_key, rclone.access_key):
        assert secret.encode() not in shown
        assert base64.b64encode(secret.encode()) not in shown


def test_an_object_beyond_one_put_is_refused() -> None:
    """More than 5 GiB is refused before anything is sent, with the remedy."""

    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_OBJECT_BYTES + 1

    with pytest.raises(UsageError, match="fewer samples per shard"):
        open_store("s3://bucket").put("key", Huge())
