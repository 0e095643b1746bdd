"""``/healthz``, ``/readyz`` and ``/metrics`` of the operator."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from adaptrain_operator import metrics

MOST, SECONDS = 64, 30.0
"""Connections at once, and how long each may last."""
Check = Callable[[], str | None]
"""Nothing when all is well, else what isn't."""


async def serve(host: str, port: int, healthy: Check, ready: Check) -> web.AppRunner:
    """Listen; the caller cleans up."""

    def answer(check: Check) -> web.Response:
        problem = check()
        return web.Response(text="ok\n") if problem is None else web.Response(status=503, text=problem + "\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(healthy)

    async def readyz(_: web.Request) -> web.Response:
        return answer(ready)

    async def scrape(_: web.Request) -> web.Response:
        text = generate_latest(metrics.REGISTRY)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await _Site(runner, host or None, port).start()
    return runner


class _Site(web.TCPSite):
    """One of bounded connections: when one more comes the oldest is closed, and so is each after a while."""

    async def start(self) -> None:
        await web.BaseSite.start(self)
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert isinstance(server, web.Server)

        def accept() -> asyncio.Protocol:
            for oldest in server.connections[: 1 - MOST]:
                oldest.force_close()
            handler = server()
            loop.call_later(SECONDS, handler.force_close)
            return handler

        self._server = await loop.create_server(accept, self._host, self._port, backlog=self._backlog)
