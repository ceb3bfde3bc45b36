"""moto's server, whose conditional puts are atomic as S3's are: `python -P tests/atomic_moto.py PORT`.

moto looks whether a key is taken and writes afterwards, in one thread per request; on a busy machine two of eight writers were
seen to create one object. So conditional puts go through here one at a time, each once its body has arrived.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class AtomicPuts:
    """The whole of moto, with a lock around conditional puts."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)
        body = environ["wsgi.input"]
        data = body.read(int(environ["CONTENT_LENGTH"])) if environ.get("CONTENT_LENGTH") else body.read()
        with self._one_at_a_time:
            return self._app(environ | {"wsgi.input": io.BytesIO(data)}, start_response)


if __name__ == "__main__":
    port = int(sys.argv[1])
    os.environ["MOTO_PORT"] = str(port)
    run_simple("127.0.0.1", port, AtomicPuts(), threaded=True, request_handler=MotoRequestHandler)
