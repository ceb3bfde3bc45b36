"""Whether a cluster's head answers, before Ray is asked to join it: it is there, talks TLS as told, and takes the token.

In: its address and the environment. Out: nothing, or an error that says what to do. Ray itself asks again for minutes, and then
names no cause.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.exceptions import AuthenticationError

from genworker.errors import ClusterError

_ANSWER_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost")
HARMLESS_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def await_answer(address: str) -> None:
    """Raise ClusterError where nothing at ``host:port`` answers as a head does, with TLS and token as the environment says."""
    host, _, port = address.rpartition(":")
    if not host or "://" in host or not port.isdecimal():
        return  # "auto" and the like
    if host in _LOOPBACK:
        host = ray.util.get_node_ip_address()  # as Ray does
    tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    place = f"{host}:{port}"
    channel = grpc.secure_channel(place, _certificates()) if tls else grpc.insecure_channel(place)
    try:
        grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        if not _takes_token(channel):
            raise ClusterError(refusal(address))
    except grpc.FutureTimeoutError:
        seen = "with the certificates of RAY_TLS_SERVER_CERT and RAY_TLS_CA_CERT" if tls else "without TLS"
        raise ClusterError(
            f"RAY_ADDRESS {address!r}: cannot join this cluster: it did not answer {seen} for {_ANSWER_SECONDS:.0f} s; check "
            "the address, that `ray start --head` runs there, and that RAY_USE_TLS, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY "
            "and RAY_TLS_CA_CERT are set here as on its nodes, with a certificate of the same authority"
        ) from None
    finally:
        channel.close()


def refusal(address: str) -> str:
    """What to say when a token is wanted to join the cluster at ``address``, and the right one is not at hand."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    seen = ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in names)
    return (
        f"RAY_ADDRESS {address!r}: cannot join this cluster: a token is wanted, and there is none here, or another one "
        f"({seen}); set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file of mode 600 that holds the cluster's token"
    )


def _takes_token(channel: grpc.Channel) -> bool:
    try:
        metadata = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
    except AuthenticationError:  # there is none, which matters only to a head that wants one
        metadata = []
    try:
        channel.unary_unary(HARMLESS_QUESTION)(b"", timeout=_ANSWER_SECONDS, metadata=metadata)
    except grpc.RpcError as err:
        return err.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _certificates() -> grpc.ChannelCredentials:
    names = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
    try:
        return grpc.ssl_channel_credentials(*(Path(os.environ[name]).read_bytes() for name in names))
    except (KeyError, OSError) as err:
        raise ClusterError(f"RAY_USE_TLS is set, which needs files named by {', '.join(names)}: {err}") from err
