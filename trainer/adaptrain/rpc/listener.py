"""Listens on a port that anybody may reach: strangers are bounded in number, in pace and in time.

A connection is a *stranger* until its handler admits it. There are only so many of them at once: when one more comes,
the oldest of the address that has the most is closed. So who keeps connections open crowds out itself, and a peer that
has something to say, which takes it milliseconds, always finds a place.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from adaptrain.observability.metrics import Refusals
from adaptrain.rpc.framing import MAX_FRAME, BadFrame
from adaptrain.rpc.ports import listen_on

log = logging.getLogger(__name__)

BACKLOG = 128
PAUSE_SECONDS = 0.1
"""Before a connection is accepted again after that was impossible, for want of descriptors for instance."""
LOG_SECONDS = 10.0
"""Between two lines about what was refused."""


@dataclass(frozen=True)
class Bounds:
    """Of strangers, and of all connections."""

    strangers: int
    per_address: int
    seconds: float
    """Longest time until a stranger is admitted, or its handler is done."""
    per_second: float
    """Connections that are accepted in a second; more wait in the kernel's queue."""
    most: int
    """Connections at once, strangers or not."""


class Guest:
    """A connection that was accepted."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        time_limit: asyncio.Timeout,
        admitted: Callable[[], object],
    ) -> None:
        self.reader, self.writer = reader, writer
        self._time_limit = time_limit
        self._admitted = admitted

    def admit(self) -> None:
        """It has proved who it is: it may stay for as long as it likes."""
        if not self._time_limit.expired():
            self._time_limit.reschedule(None)
        self._admitted()


Serve = Callable[[Guest], Awaitable[None]]


class Listener:
    """Accepts connections on one port and has them served.

    Args:
        name: what it is called in logs and metrics.
        serve: takes a connection, which is closed when it returns or raises. A BadFrame is what the other end did.
    """

    def __init__(self, name: str, serve: Serve, bounds: Bounds, refusals: Refusals) -> None:
        self._name, self._serve, self._bounds, self._refusals = name, serve, bounds, refusals
        self._socket: socket.socket | None = None
        self._strangers: dict[asyncio.Task[None], str] = {}
        """Their addresses, the oldest first."""
        self._connections: set[asyncio.Task[None]] = set()
        self._logged = -LOG_SECONDS

    def open(self, host: str, port: int) -> int:
        """Open the port; 0: any free one. Returns which.

        Raises:
            OSError: it can't be opened.
        """
        self.adopt(listen_on(host, port, BACKLOG))
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    def adopt(self, listening: socket.socket) -> None:
        """Take a port that was opened before."""
        listening.setblocking(False)
        self._socket = listening

    async def run(self) -> None:
        """Accept connections until cancelled, which closes all of them."""
        assert self._socket is not None
        loop, pace = asyncio.get_running_loop(), self._bounds.per_second
        allowance, counted = pace, time.monotonic()
        try:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._socket)
                except OSError as error:
                    self._refuse("descriptors", f"a connection can't be accepted: {error}")
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                now = time.monotonic()
                allowance, counted = min(pace, allowance + (now - counted) * pace) - 1, now
                self._take(connection, source(str(peer[0])))
                if allowance < 0:
                    await asyncio.sleep(-allowance / pace)
        finally:
            self._socket.close()
            for task in self._connections:
                task.cancel()

    def _take(self, connection: socket.socket, address: str) -> None:
        if len(self._connections) >= self._bounds.most and not self._strangers:
            connection.close()
            self._refuse("full", f"{address} is one more than {self._bounds.most} connections")
            return
        self._make_room(address)
        task = asyncio.get_running_loop().create_task(self._entertain(connection, address))
        self._strangers[task] = address
        self._connections.add(task)
        task.add_done_callback(self._forget)

    def _make_room(self, address: str) -> None:
        counts = Counter(self._strangers.values())
        if counts[address] >= self._bounds.per_address:
            crowded = address
        elif len(self._strangers) >= self._bounds.strangers or len(self._connections) >= self._bounds.most:
            crowded = counts.most_common(1)[0][0]
        else:
            return
        oldest = next(task for task, other in self._strangers.items() if other == crowded)
        del self._strangers[oldest]
        oldest.cancel()
        self._refuse("crowded", f"the oldest of {counts[crowded]} idle connections from {crowded} is closed")

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._strangers.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._refusals.count(self._name, "error")
            log.error("%s: a connection was closed by an error of ours", self._name, exc_info=error)

    async def _entertain(self, connection: socket.socket, address: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        writer: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._bounds.seconds) as limit:
                reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_FRAME)
                await self._serve(Guest(reader, writer, limit, lambda: self._strangers.pop(task, None)))
        except BadFrame as error:
            self._refuse("odd", f"{address} sent what is no message of ours: {error}")
        except TimeoutError:
            self._refuse("slow", f"{address} said nothing of use for {self._bounds.seconds:.0f} s")
        except (OSError, EOFError):
            pass  # it hung up
        finally:
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()

    def _refuse(self, reason: str, words: str) -> None:
        self._refusals.count(self._name, reason)
        if (now := time.monotonic()) - self._logged >= LOG_SECONDS:
            self._logged = now
            log.warning("%s: %s", self._name, words)


def source(address: str) -> str:
    """Where a connection comes from: an IPv4 address, or the 64 bits of an IPv6 one that name a network; a host may
    have all addresses of it."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> 64 << 64))
    return str(found)
