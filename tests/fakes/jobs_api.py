"""A stand-in for the Jobs API of a Ray cluster: it keeps jobs in a dictionary and runs none.

In: what a test lets happen to jobs. Out: an address, and what was asked. It speaks HTTP and WebSocket as the dashboard does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class JobsApi:
    """What it answers, to be changed by tests.

    Attributes:
        ray_version: of the cluster.
        refusals: texts that submits are refused with before one is taken.
        rivals: whether another client submits each job just before it is submitted.
        status: of a job as soon as it is there.
        exit_code: of its driver.
        logs: all that it printed.
        tails: what is sent on each connection that follows a job, before it is cut; after them all of ``logs``.
        jobs: what was submitted, by id.
    """

    ray_version: str = ray.__version__
    refusals: list[str] = field(default_factory=list)
    rivals: bool = False
    status: str = "SUCCEEDED"
    exit_code: int = 0
    logs: str = ""
    tails: list[str] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.ray_version, "ray_commit": ""})

    async def submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        if self.refusals:
            return web.Response(status=500, text=self.refusals.pop(0))
        name = job["submission_id"]
        if self.rivals:
            self.jobs[name] = "the rival's"
        if name in self.jobs:
            return web.Response(status=500, text=f"Job with submission_id {name} already exists")
        self.jobs[name] = job
        return web.json_response({"job_id": name, "submission_id": name})

    async def show(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.jobs:
            return web.Response(status=404, text=f"Job {name} does not exist")
        running = self.status == "SUCCEEDED" and self.tails
        status = "RUNNING" if running else self.status
        job = {"type": "SUBMISSION", "submission_id": name, "entrypoint": "", "status": status}
        return web.json_response({**job, "message": "the message", "driver_exit_code": self.exit_code})

    async def show_logs(self, _request: web.Request) -> web.Response:
        return web.json_response({"logs": self.logs})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        reply = web.WebSocketResponse()
        await reply.prepare(request)
        if self.tails:
            await reply.send_str(self.tails.pop(0))
            assert request.transport is not None
            request.transport.close()  # without a farewell
        else:
            await reply.send_str(self.logs)
            await reply.close()
        return reply


@contextlib.contextmanager
def serve() -> Iterator[JobsApi]:
    """Answer on a loopback port, in a thread."""
    api = JobsApi()
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/version", api.version),
            web.post("/api/jobs/", api.submit),
            web.get("/api/jobs/{name}", api.show),
            web.get("/api/jobs/{name}/logs", api.show_logs),
            web.get("/api/jobs/{name}/logs/tail", api.tail),
        ]
    )
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, shutdown_timeout=0)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()
