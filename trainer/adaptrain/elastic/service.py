"""What every coordinator serves: connections of its pods, and progress, metrics and health over HTTP."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from adaptrain_api.progress import Progress
from prometheus_client import CollectorRegistry

from adaptrain.elastic import http, wire

log = logging.getLogger(__name__)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Announce = Callable[[int, int], None]
T = TypeVar("T")


async def listen(
    serve: Serve,
    snapshot: Callable[[], Progress],
    registry: CollectorRegistry,
    token: str,
    ports: tuple[str, int, int],
    announce: Announce | None,
    told: Callable[[bytes], None] | None = None,
) -> asyncio.Server:
    """Open both ports.

    Args:
        serve: what is done with a connection to the control port.
        snapshot: what is told of the progress; called on this event loop.
        ports: the host, and the ports for control and HTTP; 0: any free one.
        announce: is called with the two ports once they are open.
        told: takes what is posted to ``/trials``, on this event loop, or raises ValueError.
    """
    loop = asyncio.get_running_loop()
    host, control_port, http_port = ports

    def here(work: Callable[[], T]) -> T:
        async def done() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), loop).result(timeout=5)

    def progress() -> dict[str, Any]:
        return here(lambda: snapshot().model_dump(mode="json", by_alias=True))

    def hear(body: bytes) -> None:
        if told is not None:
            here(lambda: told(body))

    server = await asyncio.start_server(serve, host, control_port, limit=wire.MAX_FRAME)
    web = http.serve(host, http_port, registry, progress, token, None if told is None else hear)
    if announce is not None:
        announce(server.sockets[0].getsockname()[1], web)
    return server


def welcome(hello: wire.Frame, token: str, writer: asyncio.StreamWriter) -> bool:
    """Whether who says hello knows the token and speaks our protocol; who doesn't speak it is told."""
    said = hello.get("token")
    if not isinstance(said, str) or not hmac.compare_digest(said.encode(), token.encode()):
        log.warning("a connection without the token was refused")
        return False
    if hello.get("protocol") != wire.PROTOCOL:
        log.warning("a worker speaks protocol %r, this coordinator %d", hello.get("protocol"), wire.PROTOCOL)
        writer.write(wire.encode({"do": "refuse", "why": f"the coordinator speaks protocol {wire.PROTOCOL}"}))
        return False
    return True
