"""Replies that no well-behaved S3 server gives on demand, from a small HTTP server that answers by script."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from genworker.errors import (
    ObjectExistsError,
    ObjectMissingError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    UsageError,
)
from genworker.stores.s3 import ATTEMPTS, S3Store
from genworker.stores.s3_client import endpoint_of, make_client
from tests.proxies import reset_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "scripted-secret-0123456789"  # noqa: S105
DATE = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@dataclass(frozen=True)
class Reply:
    """One answer; ``missing`` bytes of the announced body are never sent, and after them comes a FIN, or a RST on ``reset``."""

    status: int
    code: str = ""
    message: str = "said so"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    reset: bool = False

    def content(self) -> bytes:
        if not self.code:
            return self.body
        return f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


OK = Reply(200)
TAKEN = Reply(412, "PreconditionFailed")
BROKEN_OFF = Reply(404, "NoSuchKey", missing=10, reset=True)
HONOURS = [OK, TAKEN, Reply(204)]  # a probe: first put, second put, delete


class Script:
    """A server that gives ``replies`` in turn and records the requests; asking it for more is an error."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
                reply = script.replies.pop(0) if script.replies else Reply(500, "ScriptIsOver")
                content = reply.content()
                self.send_response(reply.status)
                size = {"Content-Length": str(len(content) + reply.missing), "Connection": "close"}
                for name, value in {**size, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                self.close_connection = True
                if reply.reset:
                    reset_connection(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Keep the output of the tests clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def methods(self) -> list[str]:
        return [method for method, _ in self.requests]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of S3, none set but credentials, one attempt, and no files of the user's."""
    for name in os.environ:
        if name.startswith(("AWS_", "GENWORKER_S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "scripted")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return monkeypatch


@pytest.fixture
def script(environment: pytest.MonkeyPatch) -> Iterator[Script]:
    """A scripted server that the environment points at; every reply of the script must have been asked for."""
    script = Script()
    environment.setenv("AWS_ENDPOINT_URL_S3", script.endpoint)
    thread = threading.Thread(target=script.server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join()
    assert script.replies == []


def test_a_lost_race_is_asked_again(script: Script) -> None:
    """409, which S3 answers while another conditional put is in flight, is tried again until there is an answer."""
    conflict = Reply(409, "ConditionalRequestConflict")
    script.replies = [*HONOURS, conflict, conflict, OK]
    S3Store("s3://bucket").put("key", b"x")
    script.replies = [conflict, TAKEN]
    store = S3Store("s3://bucket")
    store._conditional = True
    with pytest.raises(ObjectExistsError):
        store.put("key", b"x")
    assert all(headers.get("if-none-match") == "*" for method, headers in script.requests if method == "PUT")


def test_an_endless_conflict_is_an_error(script: Script) -> None:
    """A conflict that does not end is reported after a few attempts, as something that another attempt may mend."""
    script.replies = [*HONOURS, *[Reply(409, "ConditionalRequestConflict")] * ATTEMPTS]
    with pytest.raises(StoreError, match="ConditionalRequestConflict") as caught:
        S3Store("s3://bucket").put("key", b"x")
    assert type(caught.value) is StoreError


def test_a_lost_reply_to_the_probe_is_understood(script: Script) -> None:
    """If the SDK repeats the first put of the probe because its reply was lost, 412 shows that conditions hold."""
    script.replies = [TAKEN, Reply(204)]
    assert S3Store("s3://bucket").conditional is True


def test_a_probe_is_as_patient_as_a_put(script: Script) -> None:
    """What a put is sent again for does not decide whether the server has conditions, nor does it end the job."""
    script.replies = [Reply(409, "ConditionalRequestConflict"), OK, Reply(400, "BadDigest"), TAKEN, Reply(204)]
    assert S3Store("s3://bucket").conditional is True


def test_a_server_without_the_condition_is_not_conditional(script: Script) -> None:
    """501 to the condition means False, found out once per store."""
    script.replies = [Reply(501, "NotImplemented"), Reply(204), Reply(404), Reply(404, "NoSuchKey"), OK]
    store = S3Store("s3://bucket")
    assert store.conditional is False
    assert store.conditional is False
    store.put("key", b"x")
    assert script.methods() == ["PUT", "DELETE", "HEAD", "GET", "PUT"]
    assert "if-none-match" not in script.requests[-1][1]


def test_a_probe_that_may_not_delete_is_fine(script: Script) -> None:
    """Writers often have no right to delete; the probe's empty object then stays."""
    script.replies = [OK, TAKEN, Reply(403, "AccessDenied")]
    assert S3Store("s3://bucket").conditional is True


def test_overwriting_needs_no_probe(script: Script) -> None:
    """A put that may overwrite is one request without condition, with the content's checksum and digest."""
    script.replies = [Reply(200, headers={"Date": "Mon, 01 Jan 2024 00:00:00 GMT"})]
    info = S3Store("s3://bucket/prefix").put("key", b"data", overwrite=True)
    ((method, headers),) = script.requests
    digest = hashlib.sha256(b"data")
    assert method == "PUT"
    assert "if-none-match" not in headers
    assert headers["x-amz-checksum-sha256"] == base64.b64encode(digest.digest()).decode()
    assert headers["x-amz-meta-sha256"] == digest.hexdigest()
    assert info.sha256 == digest.hexdigest()


def test_a_body_that_breaks_off_is_read_again(script: Script) -> None:
    """A reply that ends too early never becomes a short object; the read is repeated."""
    script.replies = [Reply(200, body=b"0123", missing=6), Reply(200, body=b"0123456789")]
    assert S3Store("s3://bucket").get("key") == b"0123456789"


def test_a_body_that_always_breaks_off_is_an_error(script: Script) -> None:
    """After a few attempts the read fails, with the key and the endpoint."""
    script.replies = [Reply(200, body=b"0123", missing=6)] * ATTEMPTS
    with pytest.raises(StoreError, match="get 'key' in s3://bucket at http"):
        S3Store("s3://bucket").get("key")


def test_an_error_whose_reason_breaks_off_is_asked_for_again(script: Script) -> None:
    """The SDK lets such errors pass as those of its HTTP library, and does not ask again."""
    script.replies = [BROKEN_OFF, Reply(404, "NoSuchKey")]
    with pytest.raises(ObjectMissingError, match="no such object"):
        S3Store("s3://bucket").get("key")
    script.replies = [Reply(404), BROKEN_OFF, Reply(404, "NoSuchKey")]
    with pytest.raises(ObjectMissingError, match="no such object"):
        S3Store("s3://bucket").head("key")


def test_an_error_whose_reason_always_breaks_off_is_an_error(script: Script) -> None:
    """Also after many attempts it is one of ours."""
    script.replies = [BROKEN_OFF] * ATTEMPTS
    with pytest.raises(StoreError, match="get 'key' in s3://bucket at http"):
        S3Store("s3://bucket").get("key")


def test_an_upload_that_was_damaged_is_sent_again(script: Script) -> None:
    """The SDK gives up on a wrong checksum; the bytes here are right, so they are sent again."""
    script.replies = [Reply(400, "BadDigest"), Reply(400, "IncompleteBody"), OK]
    S3Store("s3://bucket").put("key", b"x", overwrite=True)
    script.replies = [Reply(400, "XAmzContentSHA256Mismatch")] * ATTEMPTS
    with pytest.raises(StoreError, match="XAmzContentSHA256Mismatch") as caught:
        S3Store("s3://bucket").put("key", b"x", overwrite=True)
    assert type(caught.value) is StoreError


def with_digest(body: bytes, of: bytes) -> Reply:
    """A reply whose metadata names the digest of what was put."""
    return Reply(200, body=body, headers={"x-amz-meta-sha256": hashlib.sha256(of).hexdigest()})


def test_a_body_that_was_damaged_is_read_again(script: Script) -> None:
    """A whole object is compared with the digest that was put with it; parts of it cannot be."""
    script.replies = [with_digest(b"012x", of=b"0123"), with_digest(b"0123", of=b"0123")]
    assert S3Store("s3://bucket").get("key") == b"0123"
    script.replies = [with_digest(b"12", of=b"0123")]
    assert S3Store("s3://bucket").get("key", start=1, length=2) == b"12"


def test_a_range_that_is_the_whole_object_is_compared_too(script: Script) -> None:
    """So are what was asked for with a limit, plans and bundles among them, whose parsers must not see a turned bit."""
    damaged, right = (
        Reply(206, body=body, headers=with_digest(body, of=b"0123").headers | {"Content-Range": "bytes 0-3/4"})
        for body in (b"012x", b"0123")
    )
    script.replies = [damaged, right]
    assert S3Store("s3://bucket").get("key", length=100) == b"0123"


def test_what_is_stored_wrongly_is_returned(script: Script) -> None:
    """Twice the same bytes are what is stored; whether that is right is for its readers to say, who name the shard."""
    script.replies = [with_digest(b"012x", of=b"0123")] * 2
    assert S3Store("s3://bucket").get("key") == b"012x"


def test_a_body_that_is_always_another_is_an_error(script: Script) -> None:
    """Bytes that change on the way are never taken for an object."""
    script.replies = [with_digest(b"%d" % number, of=b"0123") for number in range(ATTEMPTS)]
    with pytest.raises(StoreError, match=r"'key' in s3://bucket at http.*none with the content that was put"):
        S3Store("s3://bucket").get("key")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>a gateway's page",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><LastModified>x</LastModified></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1x</Size></Contents></ListBucketResult>",
    ],
)
def test_a_damaged_listing_is_an_error(script: Script, body: bytes) -> None:
    """A listing that cannot be read is our error, which names the bucket, and not one of some parser."""
    script.replies = [Reply(200, body=body)]
    with pytest.raises(StoreError, match="list s3://bucket at http"):
        list(S3Store("s3://bucket").list())


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(403, "AccessDenied"), StoreAccessError, "s3:PutObject"),
        (Reply(403, "SomethingNew"), StoreAccessError, "AWS_ACCESS_KEY_ID"),
        (Reply(403, "InvalidAccessKeyId"), StoreAccessError, "AWS_ACCESS_KEY_ID"),
        (Reply(403, "SignatureDoesNotMatch"), StoreAccessError, "AWS_SECRET_ACCESS_KEY"),
        (Reply(400, "ExpiredToken"), StoreAccessError, "AWS_SESSION_TOKEN"),
        (Reply(403, "RequestTimeTooSkewed"), StoreAccessError, "clock"),
        (Reply(404, "NoSuchBucket"), StoreAccessError, "create the bucket"),
        (Reply(400, "AuthorizationHeaderMalformed"), StoreAccessError, "AWS_REGION"),
        (Reply(404, "NoSuchKey"), ObjectMissingError, "no such object"),
        (Reply(507, "XMinioStorageFull"), StoreFullError, "make space"),
        (Reply(500, "InternalError", "write /data/x: No space left on device"), StoreFullError, "make space"),
        (Reply(403, "QuotaExceeded"), StoreFullError, "make space"),
        (Reply(400, "EntityTooLarge"), UsageError, "fewer samples per shard"),
        (Reply(503, "SlowDown"), StoreError, r"\(SlowDown\) after 1 attempts; run the same command again"),
        (Reply(500, "InternalError"), StoreError, "InternalError.*AWS_MAX_ATTEMPTS"),
        (
            Reply(502, body=b"<Error><Code></Code><Message>bad gateway</Message></Error>"),
            StoreError,
            r"gateway \(502\)",
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Reply) else "",
)
def test_errors_by_code(script: Script, reply: Reply, error: type[Exception], says: str) -> None:
    """Each code becomes the error that decides rightly about retries, and says what to do, but no credential."""
    script.replies = [reply]
    with pytest.raises(error, match=says) as caught:
        S3Store("s3://bucket/prefix").get("key")
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None
    message = str(caught.value)
    assert "s3://bucket/prefix" in message
    assert script.endpoint in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([Reply(404), Reply(404, "NoSuchKey")], ObjectMissingError),
        ([Reply(404), Reply(404, "NoSuchBucket")], StoreAccessError),
        ([Reply(403), Reply(403, "InvalidAccessKeyId")], StoreAccessError),
        # On a bare 400 botocore itself asks for the bucket's region first.
        ([Reply(400), Reply(400), Reply(400, "ExpiredToken")], StoreAccessError),
        ([Reply(404), Reply(200, body=b"just arrived")], ObjectMissingError),
    ],
)
def test_head_learns_the_reason_by_get(script: Script, replies: list[Reply], error: type[Exception]) -> None:
    """A refused HEAD, whose reply has no body and so no code, is explained by the same question as GET."""
    script.replies = list(replies)
    with pytest.raises(error, match="head 'key'") as caught:
        S3Store("s3://bucket").head("key")
    assert type(caught.value) is error


def test_head_takes_no_checksum_of_parts_for_a_digest(script: Script) -> None:
    """The SHA-256 that S3 keeps of a multipart object is one over checksums, so the object is read."""
    checksum = base64.b64encode(hashlib.sha256(b"parts").digest()).decode()
    headers = {
        **DATE,
        "x-amz-checksum-sha256": f"{checksum}-2",
        "x-amz-checksum-type": "COMPOSITE",
        "Content-Length": "5",
    }
    script.replies = [Reply(200, headers=headers), Reply(200, body=b"parts", headers=DATE)]
    assert S3Store("s3://bucket").head("key").sha256 == hashlib.sha256(b"parts").hexdigest()


def test_head_uses_the_servers_checksum(script: Script) -> None:
    """A whole object's SHA-256 that the server holds is taken as the digest, without reading the object."""
    digest = hashlib.sha256(b"whole")
    headers = {**DATE, "x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode(), "Content-Length": "5"}
    script.replies = [Reply(200, headers=headers)]
    info = S3Store("s3://bucket").head("key")
    assert (info.size, info.sha256, info.modified) == (5, digest.hexdigest(), 1704067200.0)


def test_a_store_survives_a_fork(script: Script) -> None:
    """A forked child makes a client of its own and does not write into the parent's connections."""
    script.replies = [Reply(200, body=b"parent"), Reply(200, body=b"child"), Reply(200, body=b"parent")]
    program = """
import os
from genworker.stores.s3 import S3Store
store = S3Store("s3://bucket")
assert store.get("key") == b"parent"
client = store._connect()
child = os.fork()
if not child:
    os._exit(0 if store.get("key") == b"child" and store._connect() is not client else 1)
assert os.waitpid(child, 0)[1] == 0
assert store.get("key") == b"parent" and store._connect() is client
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def style(client: Any) -> str:
    return str(client.meta.config.s3["addressing_style"])


def test_addresses_are_path_style_unless_amazons(environment: pytest.MonkeyPatch) -> None:
    """Servers of one's own get the bucket in the path, Amazon as it likes, and a variable overrules both."""
    assert style(make_client()) == "auto"
    environment.setenv("AWS_ENDPOINT_URL", "https://s3.eu-west-1.amazonaws.com")
    assert style(make_client()) == "auto"
    environment.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    assert style(make_client()) == "path"
    environment.setenv("GENWORKER_S3_ADDRESSING_STYLE", "virtual")
    assert style(make_client()) == "virtual"


def test_region_comes_from_either_variable(environment: pytest.MonkeyPatch) -> None:
    """AWS_REGION goes before AWS_DEFAULT_REGION, and without both it is us-east-1."""
    assert make_client().meta.region_name == "us-east-1"
    environment.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert make_client().meta.region_name == "eu-west-3"
    environment.setenv("AWS_REGION", "eu-central-1")
    assert make_client().meta.region_name == "eu-central-1"


def test_clients_are_set_up_for_bulk_work(environment: pytest.MonkeyPatch) -> None:
    """Ten attempts, unless AWS_MAX_ATTEMPTS says otherwise, and checksums of parts are not taken for the whole's."""
    environment.delenv("AWS_MAX_ATTEMPTS")
    config = make_client().meta.config
    assert config.retries == {"mode": "standard", "total_max_attempts": 10}  # type: ignore[attr-defined]
    assert config.response_checksum_validation == "when_required"  # type: ignore[attr-defined]
    environment.setenv("AWS_MAX_ATTEMPTS", "4")
    assert make_client().meta.config.retries["total_max_attempts"] == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["GENWORKER_S3_ADDRESSING_STYLE", "AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"])
def test_wrong_settings_are_named(environment: pytest.MonkeyPatch, name: str) -> None:
    """A variable with an unusable value is a usage error that names it."""
    environment.setenv(name, "sideways")
    with pytest.raises(UsageError, match=f"{name}='sideways'"):
        S3Store("s3://bucket").get("key")


def test_a_password_in_the_endpoint_is_not_shown(environment: pytest.MonkeyPatch) -> None:
    """Whatever stands before the @ of the endpoint's URL stays out of messages."""
    environment.setenv("AWS_ENDPOINT_URL_S3", "http://user:pass-word@127.0.0.1:9")
    assert endpoint_of(make_client()) == "http://127.0.0.1:9"
    with pytest.raises(StoreError) as caught:
        S3Store("s3://bucket").get("key")
    assert "pass-word" not in str(caught.value)
    environment.setenv("AWS_ENDPOINT_URL_S3", "user:pass-word@no-url")
    with pytest.raises(StoreAccessError, match="AWS_ENDPOINT_URL") as refused:
        S3Store("s3://bucket").get("key")
    assert "pass-word" not in str(refused.value)


def test_an_object_that_a_server_lists_twice_is_one(script: Script) -> None:
    """What several writers replaced at once stands twice in the listing of rclone's server; a page may end between."""
    contents = "<Contents><Key>{}</Key><Size>3</Size><LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
    more = "<IsTruncated>{}</IsTruncated><NextContinuationToken>n</NextContinuationToken>"
    page = f"<ListBucketResult>{more}{{}}</ListBucketResult>"
    names = [("true", ("a", "b", "b")), ("false", ("b", "c"))]
    script.replies = [
        Reply(200, body=page.format(cut, "".join(contents.format(name) for name in found)).encode())
        for cut, found in names
    ]
    assert [info.key for info in S3Store("s3://bucket").list()] == ["a", "b", "c"]
