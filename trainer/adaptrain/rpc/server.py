"""What every coordinator serves: connections of its pods, and progress, metrics and health over HTTP."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.contracts.proof import Gate
from prometheus_client import CollectorRegistry

from adaptrain.observability.metrics import Refusals
from adaptrain.rpc import framing, handshake, http
from adaptrain.rpc.descriptors import raise_limit
from adaptrain.rpc.handshake import CONTROL, Roles
from adaptrain.rpc.listener import Bounds, Guest, Listener, Serve
from adaptrain.rpc.messages import Dialect

log = logging.getLogger(__name__)

STRANGERS = 256
STRANGERS_PER_ADDRESS = 128
"""All workers of a local run, or of a node without pod addresses, come from one."""
PER_SECOND = 1000.0
RESERVED = 400
"""Descriptors for all else: HTTP, storage, logs."""
HERE_SECONDS = 5.0

Announce = Callable[[int, int], None]
Reply = Callable[[framing.Frame], framing.Frame]
T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """What is served over HTTP; both functions are called on the event loop that opens it."""

    registry: CollectorRegistry
    refusals: Refusals
    snapshot: Callable[[], Progress]
    told: Callable[[bytes], None] | None = None
    """Takes what is posted to ``/trials``, or raises ValueError."""


def listen(serve: Serve, site: Site, token: str, ports: tuple[str, int, int], announce: Announce | None) -> Listener:
    """Open both ports, and serve HTTP. The listener of the control port is the caller's to run.

    Args:
        serve: what is done with a connection to the control port.
        ports: the host, and the ports for control and HTTP; 0: any free one.
        announce: is called with the two ports once they are open.

    Raises:
        OSError: a port can't be opened.
    """
    loop = asyncio.get_running_loop()
    host, control_port, http_port = ports

    async def here(work: Callable[[], T]) -> T:
        async def done() -> T:
            return work()

        there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(done(), loop))
        return await asyncio.wait_for(there, HERE_SECONDS)

    async def progress() -> dict[str, Any]:
        return await here(lambda: site.snapshot().model_dump(mode="json", by_alias=True))

    async def hear(body: bytes) -> None:
        if (told := site.told) is not None:
            await here(lambda: told(body))

    most = max(STRANGERS, raise_limit() - RESERVED)
    bounds = Bounds(STRANGERS, STRANGERS_PER_ADDRESS, handshake.HANDSHAKE_SECONDS, PER_SECOND, most)
    control = Listener("control", serve, bounds, site.refusals)
    opened = control.open(host, control_port)
    pages = http.Pages(Gate(token), progress, None if site.told is None else hear)
    web = http.serve(host, http_port, site.registry, site.refusals, pages)
    if announce is not None:
        announce(opened, web)
    return control


async def meet(guest: Guest, token: str, dialect: Dialect, roles: Roles = CONTROL) -> tuple[framing.Frame, Reply]:
    """Have a connection prove that it knows the token, and speaks our protocol; it is told if not. Returns its hello,
    and what makes a proved answer.

    Raises:
        BadFrame: it doesn't.
        EOFError: it was closed before.
    """
    asked = handshake.challenge()
    guest.writer.write(framing.encode(asked))
    if (said := await framing.read(guest.reader)) is None:
        raise EOFError
    handshake.check_hello(token, asked, said, roles)
    guest.admit()
    reply = partial(handshake.answer, token, asked, said, roles=roles)
    if said.get("protocol") != framing.PROTOCOL:
        guest.writer.write(
            framing.encode(reply({"do": "refuse", "why": f"the {roles.listener} speaks protocol {framing.PROTOCOL}"}))
        )
        raise framing.BadFrame(f"protocol {said.get('protocol')!r:.20} is spoken, not {framing.PROTOCOL}")
    return dialect.check(said), reply
