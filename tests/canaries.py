"""Searching what a run left for the credentials that it was given: each is random, so that it can be nowhere by chance.

In: secrets by name, and texts by where they were found. Out: nothing, or an assertion that names the secret and the place.
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.servers import S3Server


def canary() -> str:
    """A secret of an environment variable."""
    return f"canary{secrets.token_hex(12)}"


def credentials_of(server: S3Server) -> dict[str, str]:
    """The secrets that a program gets which is pointed at ``server``."""
    return {"access key": server.access_key, "secret key": server.secret_key}


def assert_nowhere(wanted: Mapping[str, str], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Fail if a secret stands in a text or its name, as it is or in base64; returns the names of all that was searched."""
    searched = []
    for name, text in texts:
        searched.append(name)
        for kind, secret in wanted.items():
            assert not any(form in text or form in name.encode() for form in _forms(secret)), f"{kind} in {name}"
    return searched


def stored(server: S3Server, bucket: str) -> Iterator[tuple[str, bytes]]:
    """Every object of a bucket, and its metadata."""
    for page in server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page["Contents"]:
            reply = server.client.get_object(Bucket=bucket, Key=item["Key"])
            yield item["Key"], reply["Body"].read() + repr(reply["Metadata"]).encode()


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder; sockets and what disappears meanwhile are passed over."""
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file():
                yield str(path), path.read_bytes()
        except FileNotFoundError:
            continue


def _forms(secret: str) -> Iterator[bytes]:
    text = secret.encode()
    yield text
    # In base64 a text looks different at each of three offsets; its ends mix with what stands beside it.
    for offset in range(3):
        yield base64.b64encode(b"\0" * offset + text)[4 if offset else 0 : -4]
