"""moto's server, whose conditional puts are atomic as S3's are: `python -P tests/atomic_moto.py PORT`.

It listens on loopback and closes connections after each reply, unless its options say otherwise.

moto looks whether a key is taken and writes afterwards, in one thread per request; on a busy machine two of eight writers were
seen to create one object. So conditional puts go through here one at a time, each once its body has arrived.
"""

from __future__ import annotations

import argparse
import io
import os
import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.wsgi import get_input_stream


class AtomicPuts:
    """The whole of moto, with a lock around conditional puts."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)
        data = get_input_stream(environ).read()
        with self._one_at_a_time:
            return self._app(environ | {"wsgi.input": io.BytesIO(data)}, start_response)


class KeptAlive(MotoRequestHandler):
    """Connections that stay open after a reply, as those of object stores do."""

    protocol_version = "HTTP/1.1"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--keep-alive", action="store_true")
    given = parser.parse_args()
    os.environ["MOTO_PORT"] = str(given.port)
    handler = KeptAlive if given.keep_alive else MotoRequestHandler
    run_simple(given.host, given.port, AtomicPuts(), threaded=True, request_handler=handler)
