"""Sends a job's events by the openlineage-python client, from a thread of its own: a job never waits for one or fails of one.

In: a job, and where its events go: a URL, a file, or what the OPENLINEAGE_ variables and openlineage.yml say. Out: events. What
goes wrong is told in one line, once.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from genworker.errors import UsageError
from genworker.lineage.job import Job, parent_of_environment, without_secrets

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import RunEvent

CLOSE_SECONDS = 5.0  # that the end of a job may wait for its last event
_TOO_SLOW = f"the last event was not taken within {CLOSE_SECONDS:g} s"
_INSTALL = "pip install 'genworker[lineage]'"

T = TypeVar("T")


def follow(
    job: Job, target: str | None, on_event: Callable[[str], None], work: Callable[[], T], learn: Callable[[T], None]
) -> T:
    """Do ``work``; send START before it, and after it COMPLETE, FAIL for an error, or ABORT for a stop (Ctrl-C, SIGTERM).

    Args:
        job: what the events say; ``work`` may add to it while it goes on.
        target: http(s) URL of a lineage server, or a file; None: where the environment says, or nowhere.
        on_event: told in one line, once, that events were lost; also from another thread.
        work: what its errors and its result are passed on of.
        learn: adds to ``job`` what the result of ``work`` says, for COMPLETE; called in another thread.

    Raises:
        UsageError: ``target`` is given and cannot be used, or the client is not installed.
    """
    sender = _open(target, on_event)
    if sender is None:
        return work()
    sender.send(job, "START")
    try:
        result = work()
    except Exception as err:
        sender.send(job, "FAIL", err)
        raise
    except BaseException:
        sender.send(job, "ABORT")
        raise
    else:
        sender.complete(job, lambda: learn(result))
        return result
    finally:
        sender.close()


def _open(target: str | None, on_event: Callable[[str], None]) -> _Sender | None:
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        if target is not None:
            on_event("lineage: OPENLINEAGE_DISABLED is true, so --lineage sends no events")
        return None
    origin = _environment() if target is None else f"--lineage {without_secrets(target)}"
    if origin is None:
        return None
    try:
        import openlineage.client  # noqa: F401
    except ImportError:
        problem = f"events need the openlineage-python client: {_INSTALL}"
    else:
        try:
            return _Sender(target, on_event)
        except UsageError as err:
            problem = str(err)
        except Exception as err:  # the client raises what it likes about its configuration
            problem = f"cannot be used: {_line(err)}"
    if target is not None:
        raise UsageError(f"{origin}: {problem}")
    on_event(f"lineage: {origin}: {problem}; no events are sent")
    return None


def _environment() -> str | None:
    """What says where events go, in the order in which the client looks; None where nothing does."""
    names = [name for name in os.environ if name.startswith("OPENLINEAGE__TRANSPORT")]
    found = [name for name in ("OPENLINEAGE_CONFIG", "OPENLINEAGE_URL", *names) if os.environ.get(name)]
    files = [Path.cwd() / "openlineage.yml", Path("~/.openlineage/openlineage.yml").expanduser()]
    return next(iter([*found, *(str(path) for path in files if path.is_file())]), None)


def _client(target: str | None) -> OpenLineageClient:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport
    from openlineage.client.transport.http import HttpConfig, HttpTransport

    if target is None:
        client = OpenLineageClient()
        if client.transport.kind == "console" and not (client.config.transport or {}).get("type"):
            raise UsageError(
                "says of no server or file to send events to; see openlineage.io on how the client is configured"
            )
        return client
    if target.startswith(("http://", "https://")):
        settings: dict[str, Any] = {"url": target}
        if endpoint := os.environ.get("OPENLINEAGE_ENDPOINT"):
            settings["endpoint"] = endpoint
        if key := os.environ.get("OPENLINEAGE_API_KEY"):
            settings["auth"] = {"type": "api_key", "apiKey": key}
        return OpenLineageClient(transport=HttpTransport(HttpConfig.from_dict(settings)))
    path = Path(target).absolute()
    if "://" in target or path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            "give the http(s):// URL of a lineage server, or a file to append to, in a folder that is there"
        )
    return OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(path), append=True)))


class _Sender:
    """The thread that hands a run's events to the client, in order."""

    def __init__(self, target: str | None, on_event: Callable[[str], None]) -> None:
        from openlineage.client.uuid import generate_new_uuid

        self._on_event = on_event
        self._lock = threading.Lock()
        self._warned = True  # until there is a client; what goes wrong before is an error
        self._run_id, self._parent = str(generate_new_uuid()), parent_of_environment()
        # Transports with threads of their own, and those that ask several servers, tell of failures in the log alone.
        self._log = _Log(self._warn)
        logging.getLogger("openlineage").addHandler(self._log)
        try:
            self._client = _client(target)
        except Exception:
            logging.getLogger("openlineage").removeHandler(self._log)
            raise
        self._warned = False
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="lineage", daemon=True)
        self._thread.start()

    def send(self, job: Job, state: str, error: Exception | None = None) -> None:
        """Take an event about ``job`` as it is now; returns at once."""
        try:
            event = self._event(job, state, error)
        except Exception as err:  # an event that cannot be made is no reason to end a job
            self._warn(_line(err))
        else:
            self._calls.put(lambda: self._client.emit(event))

    def complete(self, job: Job, learn: Callable[[], None]) -> None:
        """Take COMPLETE, about ``job`` as it is after ``learn``; returns at once."""

        def emit() -> None:
            try:
                learn()
            except Exception as err:
                self._warn(_line(err))
            self._client.emit(self._event(job, "COMPLETE"))

        self._calls.put(emit)

    def close(self) -> None:
        """Give what was sent `CLOSE_SECONDS` to arrive."""
        self._calls.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(_TOO_SLOW)
        logging.getLogger("openlineage").removeHandler(self._log)

    def _event(self, job: Job, state: str, error: Exception | None = None) -> RunEvent:
        from genworker.lineage.events import event_of

        return event_of(job, self._run_id, state, self._parent, error)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as err:
                self._warn(_line(err))
        try:
            if not self._client.close(CLOSE_SECONDS):
                self._warn(_TOO_SLOW)
        except Exception as err:
            self._warn(_line(err))

    def _warn(self, reason: str) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        self._on_event(f"lineage: {reason}; events of this run may be missing, the job itself goes on")


class _Log(logging.Handler):
    """Hands what the client logs as a warning or worse to a function."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = warn

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(_line(record.getMessage()))


def _line(reason: Exception | str) -> str:
    text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
    return without_secrets(" ".join(text.split()))[:300]
