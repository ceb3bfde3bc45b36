"""Proxies that tests put before a server: one that goes away and comes back, one that does harm to single requests.

`Proxy` passes bytes on without looking at them, until `stop`; after `start` it is there again, at the same port. `FaultProxy`
reads each HTTP request and asks a schedule what is to go wrong with it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PIECE = 2**16


class Proxy:
    """Passes bytes between clients and the server at ``endpoint``, each connection in two threads.

    Attributes:
        url: where clients reach it.
        cut_after: bytes that it passes from the server to clients before it stops by itself; None for no limit.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._address = ("127.0.0.1", 0)
        self.cut_after: int | None = None
        self.start()
        self.url = f"http://127.0.0.1:{self._address[1]}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, at the same port as before."""
        listener = socket.create_server(self._address)
        self._address = listener.getsockname()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections and cut those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._server) as server:
            with self._lock:
                self._open |= {client, server}
            replies = threading.Thread(target=self._pass, args=(server, client, True), daemon=True)
            replies.start()
            self._pass(client, server, False)
            replies.join()
            with self._lock:
                self._open -= {client, server}

    def _pass(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if is_reply and self._spend(len(piece)):
                    target.sendall(piece[: len(piece) // 2])
                    self.stop()
                    break
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spend(self, count: int) -> bool:
        """Count bytes of replies; True for those that go over the limit."""
        with self._lock:
            if self.cut_after is None:
                return False
            self.cut_after -= count
            if self.cut_after >= 0:
                return False
            self.cut_after = None
            return True


@dataclass(frozen=True)
class Request:
    """What a schedule is told of a request: how many came before, what it asks, and whether it is a conditional put."""

    number: int
    method: str
    path: str
    conditional: bool = False


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong with one request.

    ``reply``: the server is not asked, and ``status`` and ``code`` are answered. ``reset``: the connection is closed before the
    request is passed on. ``lost``: the request is carried out and its reply is not sent. ``cut``: half of the reply's body is
    sent. ``flip``: one bit of the reply's body is turned. ``stall``: nothing is answered for ``seconds``, and the request
    is not carried out. ``late``: the same, but it is carried out then, when the client has long gone on without it.
    ``call``: ``before`` is called, then the request is passed on, ``after`` is called, and the reply is sent. ``abort``: the
    connection is reset (RST) in the middle of a body: that of an upload, which the server then never sees, or of the reply.
    """

    kind: Literal["reply", "reset", "lost", "cut", "flip", "stall", "late", "call", "abort"]
    status: int = 0
    code: str = ""
    seconds: float = 0.0
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


class FaultProxy:
    """An HTTP proxy that asks ``schedule`` about every request.

    Attributes:
        url: where clients reach it.
        num_requests: how many there were.
        faults: what was done to which of them.
    """

    def __init__(self, endpoint: str, schedule: Callable[[Request], Fault | None]) -> None:
        parts = urlsplit(endpoint)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._schedule = schedule
        self._lock = threading.Lock()
        self._quiet = threading.Condition()
        self._busy = 0
        self.num_requests = 0
        self.faults: list[tuple[Request, Fault]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def answer(self) -> None:
                with proxy._quiet:
                    proxy._busy += 1
                try:
                    proxy._serve(self)
                except (OSError, http.client.HTTPException):  # client or server are gone: what some faults are about
                    self.close_connection = True
                finally:
                    with proxy._quiet:
                        proxy._busy -= 1
                        proxy._quiet.notify_all()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Keep the output of the tests clean."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, *args: Any) -> None:
                """A client that was killed in the middle of a request is no news here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()
        self._server.shutdown()
        self._server.server_close()

    def settle(self) -> None:
        """Return when no request is on its way, late ones included."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._busy, timeout=60)

    def _serve(self, client: BaseHTTPRequestHandler) -> None:
        with self._lock:
            path = unquote(urlsplit(client.path).path)
            request = Request(self.num_requests, client.command, path, client.headers.get("If-None-Match") == "*")
            self.num_requests += 1
            fault = self._schedule(request)
        size = int(client.headers.get("Content-Length", 0))
        wanted = size // 2 if fault and fault.kind == "abort" else size
        body = client.rfile.read(wanted)
        if len(body) < wanted:  # the client died while it sent this
            client.close_connection = True
            return
        if fault is not None:
            with self._lock:
                self.faults.append((request, fault))
        fault = fault or Fault("call")
        if fault.kind == "reply":
            self._reply(client, fault)
        elif fault.kind == "abort" and (size or client.command == "HEAD"):
            reset_connection(client)
        else:
            self._pass_on(client, request, body, fault)

    def _pass_on(self, client: BaseHTTPRequestHandler, request: Request, body: bytes, fault: Fault) -> None:
        """What becomes of a request that was read."""
        fault.before()
        if fault.kind in {"stall", "late"}:
            time.sleep(fault.seconds)
        if fault.kind in {"reset", "stall"}:
            client.close_connection = True
            return
        status, headers, content = self._forward(client, body)
        fault.after()
        if fault.kind in {"lost", "late"}:
            client.close_connection = True
            return
        if fault.kind == "flip" and content:
            at = request.number * 7919 % len(content)  # another place each time
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        client.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                client.send_header(name, value)
        # A reply to HEAD tells the length of a body that it does not have.
        told = [value for name, value in headers if name.lower() == "content-length"]
        client.send_header("Content-Length", told[0] if client.command == "HEAD" and told else str(len(content)))
        client.end_headers()
        if client.command == "HEAD":
            return
        if fault.kind in {"cut", "abort"} and content:
            content = content[: len(content) // 2]
            client.close_connection = True
        client.wfile.write(content)
        if fault.kind == "abort":
            reset_connection(client)

    def _forward(self, client: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._upstream, timeout=60)
        with contextlib.closing(connection):
            # The Host header stays the client's: it is part of what was signed.
            connection.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
            for name, value in client.headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()

    def _reply(self, client: BaseHTTPRequestHandler, fault: Fault) -> None:
        content = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
        client.send_response_only(fault.status)
        client.send_header("Content-Type", "application/xml")
        client.send_header("Content-Length", str(len(content)))
        client.end_headers()
        if client.command != "HEAD":
            client.wfile.write(content)


def reset_connection(client: BaseHTTPRequestHandler) -> None:
    """End a connection with RST in place of FIN, as a crash or a middlebox does."""
    client.close_connection = True
    client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(client.connection.detach())
