"""A TCP proxy that tests put before a server, to take it away in the middle of a request and give it back.

In: the address of a server. Out: an address that behaves like it, until `stop`; after `start` it is there again, at the same
port. It looks at no byte that it passes on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
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
