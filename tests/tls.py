"""A proxy that talks TLS with clients, as one that stands before a service that talks plain HTTP.

In: where the service is, and a certificate. Out: an https address, as long as the proxy is entered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from concurrent import futures
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ADDRESS = "127.0.0.1"
_PIECE = 2**16


@contextlib.contextmanager
def tls_proxy(endpoint: str, certificate: Mapping[str, str]) -> Iterator[str]:
    """Pass on what is said to the URL that this gives; ``certificate`` is one of `Authority.certify` for 127.0.0.1."""
    parts = urlsplit(endpoint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate["RAY_TLS_SERVER_CERT"], certificate["RAY_TLS_SERVER_KEY"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            await asyncio.gather(_pass(reader, to_server), _pass(from_server, writer))
        finally:
            for end in (writer, to_server):
                end.transport.abort()

    listening: futures.Future[tuple[str, Callable[[], object]]] = futures.Future()

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(serve, _ADDRESS, ssl=context)
        url = f"https://{_ADDRESS}:{server.sockets[0].getsockname()[1]}"
        listening.set_result((url, lambda: loop.call_soon_threadsafe(stop.set)))
        async with server:
            await stop.wait()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0.01)  # for sockets to be closed

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    url, stop = listening.result(timeout=10)
    try:
        yield url
    finally:
        stop()
        thread.join()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(_PIECE):
            target.write(piece)
            await target.drain()
    target.close()
