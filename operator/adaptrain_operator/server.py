"""``/healthz``, ``/readyz`` and ``/metrics`` of the operator."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from adaptrain_operator import metrics

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
    await web.TCPSite(runner, host, port).start()
    return runner
