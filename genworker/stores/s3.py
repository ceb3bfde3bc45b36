"""Objects in S3 or in a server that speaks its protocol, at ``s3://bucket/prefix``.

A put is one request that carries a SHA-256 and, where the server honours it, the condition that the key is free.
Clients are made once per process and never pickled; errors of botocore leave this module only as ours.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import re
import threading
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError as Urllib3Error

from genworker.errors import ObjectExistsError, ObjectMissingError, StoreError, UsageError
from genworker.stores.base import ObjectInfo
from genworker.stores.keys import check_key, check_range, is_key
from genworker.stores.s3_client import endpoint_of, make_client
from genworker.stores.s3_errors import BOTO_ERRORS, PUT_AGAIN, code_of, explain, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

MAX_OBJECT_BYTES = 5 * 1024**3  # the limit of one PUT
ATTEMPTS = 5  # of what the SDK does not retry: puts that lost a race or arrived damaged, and bodies that did
BACKOFF_SECONDS = 0.1

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_BROKEN_OFF = (boto.HTTPClientError, boto.IncompleteReadError, boto.ReadTimeoutError)


class S3Store:
    """A `Store` over the objects below one prefix of a bucket; safe to use from many threads and after a fork."""

    def __init__(self, url: str) -> None:
        """Open ``s3://bucket[/prefix]`` without asking the server; raises UsageError if the URL is not of that form."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        # The URL is not shown: what stands before the @ may be a secret, in which there can be slashes.
        if "@" in bucket or (":" in bucket and "@" in prefix):
            raise UsageError(
                "store URL s3://...@...: credentials do not belong in a URL; use AWS_ACCESS_KEY_ID or a profile"
            )
        if not _BUCKET.fullmatch(bucket) or (prefix and not is_key(prefix)):
            raise UsageError(f"store URL {url!r}: write it as s3://bucket or s3://bucket/prefix")
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._client: tuple[int, S3Client] | None = None
        self._conditional: bool | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        return type(self), (self.url,)

    @property
    def conditional(self) -> bool:
        """Whether the server refuses a second create-only put, found out once by trying under ``.genworker/probe/``."""
        client = self._connect()
        with self._lock:
            if self._conditional is None:
                self._conditional = self._probe(client)
            return self._conditional

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> ObjectInfo:
        """Store ``data`` with one request; see `Store.put`.

        Raises:
            UsageError: ``data`` is larger than one request may be.
        """
        name = self._prefix + check_key(key)
        if len(data) > MAX_OBJECT_BYTES:
            raise UsageError(
                f"put {key!r} in {self.url}: {len(data)} bytes, more than the {MAX_OBJECT_BYTES} that S3 takes in one "
                "request; use fewer samples per shard"
            )
        create = not overwrite and self.conditional
        if not overwrite and not create:
            with contextlib.suppress(ObjectMissingError):
                self._head(key)
                raise ObjectExistsError(f"put {key!r} in {self.url}: the key is taken and overwrite is off")
        digest = hashlib.sha256(data)
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": name,
            "Body": data,
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
            "Metadata": {"sha256": digest.hexdigest()},
        }
        if create:
            request["IfNoneMatch"] = "*"
        with self._edge("put", key):
            reply = self._put(self._connect(), request)
        modified = _time_of(reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
        return ObjectInfo(key, len(data), modified, digest.hexdigest())

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes or a range of them; see `Store.get`."""
        check_key(key)
        check_range(start, length)
        if length == 0:  # HTTP has no empty range
            self._head(key)
            return b""
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + key}
        if start or length is not None:
            request["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        with self._edge("get", key):
            return self._get(request)

    def head(self, key: str) -> ObjectInfo:
        """Return size, time and digest; an object that some other program wrote is read to take its digest."""
        reply = self._head(key)
        sha256 = _digest_of(reply) or hashlib.sha256(self.get(key)).hexdigest()
        return ObjectInfo(key, reply["ContentLength"], reply["LastModified"].timestamp(), sha256)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield objects page by page, without digests; see `Store.list`."""
        with self._edge("list", prefix):
            paginator = self._connect().get_paginator("list_objects_v2")
            pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix))
        # rclone's server goes on listing an object twice after several writers have replaced it at once, side by side.
        last = ""
        while True:
            with self._edge("list", prefix):
                page = next(pages, None)
            if page is None:
                return
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                if is_key(key) and key != last:  # consoles make empty "folder" objects whose key ends with a slash
                    last = key
                    yield ObjectInfo(key, item["Size"], item["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """Remove an object; see `Store.delete`."""
        name = self._prefix + check_key(key)
        with contextlib.suppress(ObjectMissingError), self._edge("delete", key):
            self._connect().delete_object(Bucket=self._bucket, Key=name)

    def _put(self, client: S3Client, request: dict[str, Any]) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return client.put_object(**request)
            except boto.ClientError as err:
                if code_of(err) not in PUT_AGAIN or attempt == ATTEMPTS - 1:
                    raise
            _back_off(attempt)
        raise AssertionError("unreachable")

    def _get(self, request: dict[str, Any]) -> bytes:
        client = self._connect()
        before = None
        for attempt in range(ATTEMPTS):
            try:
                reply = self._ask(client, request)
            except boto.ClientError as err:
                if status_of(err) == 416:  # the range begins at or past the end
                    return b""
                raise
            try:
                with contextlib.closing(reply["Body"]) as body:
                    data = body.read()
            except _BROKEN_OFF:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                # A range that ends beyond the object, as of who limits what he takes, is answered with all of it.
                everything = f"bytes 0-{len(data) - 1}/{len(data)}"
                is_whole = "Range" not in request or reply.get("ContentRange") == everything
                stored = _digest_of(reply) if is_whole else None
                seen = hashlib.sha256(data).hexdigest() if stored else None
                # What comes twice is what is stored, and whether that is right is for its readers to say.
                if seen in {stored, before}:
                    return data
                before = seen
            _back_off(attempt)
        raise StoreError(
            f"get {request['Key']!r} in s3://{self._bucket} at {endpoint_of(client)}: {ATTEMPTS} replies, none with the "
            "content that was put; something on the way changes bytes: use https, or find out what it is"
        )

    def _head(self, key: str) -> HeadObjectOutputTypeDef:
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}
        with self._edge("head", key):
            client = self._connect()
            try:
                return client.head_object(**request, ChecksumMode="ENABLED")
            except boto.ClientError as err:
                if status_of(err) not in {400, 401, 403, 404}:
                    raise
                # A HEAD reply has no body and so no reason. The same question as GET raises it: a missing bucket or a
                # missing key, an unknown access key or a policy.
                self._ask(client, request)["Body"].close()
                raise

    def _ask(self, client: S3Client, request: dict[str, Any]) -> GetObjectOutputTypeDef:
        """Begin to get an object. Where an error's own body breaks off, the SDK neither asks again nor wraps what it met."""
        for attempt in range(ATTEMPTS):
            try:
                return client.get_object(**request)
            except Urllib3Error as err:
                if attempt == ATTEMPTS - 1:
                    raise boto.ResponseStreamingError(error=err) from err
            _back_off(attempt)
        raise AssertionError("unreachable")

    def _probe(self, client: S3Client) -> bool:
        key = f".genworker/probe/{uuid.uuid4().hex}"
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + key, "Body": b"", "IfNoneMatch": "*"}
        with self._edge("probe", key):
            try:
                self._put(client, request)
                self._put(client, request)
                honoured = False
            except boto.ClientError as err:
                if status_of(err) not in {412, 501}:
                    raise
                honoured = status_of(err) == 412
            # Where deleting is not allowed, an empty object stays.
            with contextlib.suppress(*BOTO_ERRORS):
                client.delete_object(Bucket=self._bucket, Key=request["Key"])
        return honoured

    def _connect(self) -> S3Client:
        """The client of this process: connections must not be shared across a fork."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                with self._edge("open", ""):
                    self._client = os.getpid(), make_client()
            return self._client[1]

    @contextlib.contextmanager
    def _edge(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (*BOTO_ERRORS, ValueError) as err:  # ValueError: botocore's, for a time or a number that is none
            what = f"{action} {key!r} in {self.url}" if key else f"{action} {self.url}"
            endpoint = endpoint_of(self._client[1]) if self._client else "S3"
            raise explain(err, what=what, endpoint=endpoint) from err


def _back_off(attempt: int) -> None:
    time.sleep(BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311 - spreads writers, guards nothing


def _digest_of(reply: HeadObjectOutputTypeDef | GetObjectOutputTypeDef) -> str | None:
    """SHA-256 (hex) of the whole object if the server has it; that of a multipart object is taken over its parts."""
    checksum = reply.get("ChecksumSHA256", "")
    if checksum and "-" not in checksum and reply.get("ChecksumType") != "COMPOSITE":
        return base64.b64decode(checksum).hex()
    # Some servers change the case of metadata names.
    metadata = {name.lower(): value for name, value in reply.get("Metadata", {}).items()}
    digest = metadata.get("sha256", "")
    return digest if _HEX_DIGEST.fullmatch(digest) else None


def _time_of(date: str | None) -> float:
    """Seconds since the epoch by the server's clock, or by ours if it sent no date."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else time.time()
    except ValueError:
        return time.time()
