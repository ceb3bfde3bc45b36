"""How genworker meets Ray: a token for each cluster that it starts, and plain words where a cluster cannot be joined."""

from __future__ import annotations

import os
import signal
import sys
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import ray
from ray.exceptions import AuthenticationError

from genworker import cluster, head
from genworker.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says how to authenticate, and nothing stays that a test sets."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The token in the environment each time that a cluster is started; none is."""
    tokens: list[str | None] = []

    def init(**options: Any) -> None:
        assert options["address"] == "local"
        tokens.append(os.environ.get("RAY_AUTH_TOKEN"))

    monkeypatch.setattr(ray, "init", init)
    return tokens


@pytest.mark.parametrize("mode", [None, "token", "Token"])
def test_a_local_cluster_gets_a_token_of_its_own(
    mode: str | None, started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the mode is set and nothing else: Ray would write one that others can read."""
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with cluster.connect() as may_grow:
        assert not may_grow
    (token,) = started
    assert token is not None
    assert len(token) == 64


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, None),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}, "mine"),
        ({"RAY_AUTH_TOKEN_PATH": "/a/file"}, None),
    ],
)
def test_a_choice_is_left_alone(
    variables: dict[str, str], token: str | None, started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with cluster.connect():
        assert started == [token]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RAY_AUTH_TOKEN_PATH", "/no/such/file", "RAY_AUTH_TOKEN_PATH '/no/such/file': holds no token"),
        ("RAY_ADDRESS", "the-head", "RAY_ADDRESS 'the-head': cannot join this cluster: a token is wanted"),
    ],
)
def test_a_missing_token_is_said_plainly(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own error is of no kind that others are, and a page long."""

    def refuse(**_options: object) -> None:
        raise AuthenticationError("no authentication token was found")

    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=message), cluster.connect():
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head that answers one question, and only who shows a token."""

    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    service, _, name = head.HARMLESS_QUESTION.strip("/").rpartition("/")
    known = {name: grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[grpc.method_handlers_generic_handler(service, known)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_head_that_refuses_is_asked_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token, and none, are told apart from a head that does not answer, in less than Ray's twenty seconds."""
    headers: dict[str, str] = {}
    monkeypatch.setattr(head, "get_auth_headers_if_auth_enabled", lambda _headers: headers)
    for value in (None, "Bearer wrong"):
        headers |= {} if value is None else {"Authorization": value}
        with pytest.raises(ClusterError, match=f"RAY_ADDRESS '{address}': cannot join this cluster: a token is wanted"):
            head.await_answer(address)
    headers["Authorization"] = "Bearer right"
    head.await_answer(address)


def test_a_head_that_does_not_know_the_question_is_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HARMLESS_QUESTION", "/other")
    head.await_answer(address)


def test_sigterm_while_ray_starts_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's handler, in force from the start of `ray.init` on, exits with 15; ours is asked instead, and stays."""

    class Terminated(Exception):  # noqa: N818 - it is a signal
        pass

    def ours(_number: int, _frame: object) -> None:
        raise Terminated

    def init(**_options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(Terminated), cluster.connect():
            pytest.fail("it went on")
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
