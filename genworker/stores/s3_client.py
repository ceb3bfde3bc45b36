"""A client of boto3's core for this process, from the standard variables, profiles and roles alone.

In: the environment (endpoint, region, credentials, CA bundle, retries). Out: a client set up for bulk work, with
path-style addresses wherever the endpoint is not Amazon's.
It never takes a credential as an argument and never sends a request.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session, get_session

from genworker import __version__
from genworker.errors import StoreAccessError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Style = Literal["path", "virtual", "auto"]

STYLE_VARIABLE = "GENWORKER_S3_ADDRESSING_STYLE"
# Of one request, unless AWS_MAX_ATTEMPTS says otherwise: bulk writers meet throttling as a matter of course.
ATTEMPTS = 10
CONNECT_SECONDS = 10
READ_SECONDS = 60
CONNECTIONS = 32

_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws")

# Holds the parsed description of S3, which takes most of the time that a client takes to make.
_LOADER = create_loader()


def make_client() -> S3Client:
    """Make a client; botocore finds credentials when the first request is signed.

    Raises:
        UsageError: a variable holds a value that can be right only otherwise.
        StoreAccessError: the endpoint in the environment is no URL.
        botocore.exceptions.BotoCoreError: a profile is missing or broken.
    """
    session = get_session()
    session.register_component("data_loader", _LOADER)
    style = _style_from_environment()
    client = _client(session, style or "auto")
    if style is None and not _is_amazon(client.meta.endpoint_url):
        # Most other servers have one host name and no DNS name per bucket.
        client.close()
        client = _client(session, "path")
    return client


def endpoint_of(client: S3Client) -> str:
    """The address that a client talks to, without a user or password that somebody wrote into it."""
    parts = urlsplit(client.meta.endpoint_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _client(session: Session, style: Style) -> S3Client:
    config = Config(
        s3={"addressing_style": style},
        retries={"mode": _retry_mode(), "total_max_attempts": _attempts()},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        # Some servers send the whole object's checksum with a part of it, and botocore then refuses the part.
        response_checksum_validation="when_required",
        user_agent_extra=f"genworker/{__version__}",
    )
    try:
        return cast("S3Client", session.create_client("s3", region_name=_region(session), config=config))
    except ValueError:
        # Not chained: botocore's text quotes the URL, which may hold a password.
        raise StoreAccessError(
            "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: the value is no URL; write it as https://host:port"
        ) from None


def _region(session: Session) -> str:
    # botocore itself does not read AWS_REGION, which is what Kubernetes and Lambda set.
    return os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"


def _retry_mode() -> Literal["legacy", "standard", "adaptive"]:
    mode = os.environ.get("AWS_RETRY_MODE") or "standard"
    if mode not in {"legacy", "standard", "adaptive"}:
        raise UsageError(f"AWS_RETRY_MODE={mode!r}: not known; use standard, adaptive or legacy")
    return cast("Literal['legacy', 'standard', 'adaptive']", mode)


def _attempts() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"AWS_MAX_ATTEMPTS={text!r}: the attempts of one request are a whole number, 1 or more")
    return int(text)


def _style_from_environment() -> Style | None:
    style = os.environ.get(STYLE_VARIABLE)
    if not style:
        return None
    if style not in {"path", "virtual", "auto"}:
        raise UsageError(f"{STYLE_VARIABLE}={style!r}: not known; use path, virtual or auto")
    return cast("Style", style)


def _is_amazon(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(_AMAZON)
