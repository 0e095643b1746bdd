"""Where a group's members meet: a store of keys and values, which the group's first member serves to the others.

torch's TCPStore takes values of any size from anybody, keeps them for ever, and asks the DNS for the name of each
address that it connects to. This one asks a member to prove that it knows the job's token (``handshake``), bounds what
it takes, and forgets what a member set when that member's connection ends. Requests are frames; a value follows the
frame that tells its length::

    member      {"is": "set", "key": "epoch/3/0", "bytes": 120} and 120 bytes
    member      {"is": "get", "key": "epoch/3/1"}
    rendezvous  {"do": "value", "bytes": 120} and 120 bytes, once a member has set them
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from torch.distributed import Store

from adaptrain.observability.metrics import Refusals
from adaptrain.rpc import framing, handshake
from adaptrain.rpc.handshake import HANDSHAKE_SECONDS, MEMBERS
from adaptrain.rpc.listener import Bounds, Guest, Listener
from adaptrain.rpc.messages import FROM_MEMBER, FROM_RENDEZVOUS
from adaptrain.rpc.server import meet

BOUNDS = Bounds(strangers=128, per_address=64, seconds=HANDSHAKE_SECONDS, per_second=1000.0, most=8192)
REACH_SECONDS = 5.0
"""Longest wait for a connection to the first member."""
VALUE_SECONDS = 30.0
"""Longest wait for a value that another member is to set."""
RETRY_SECONDS = 0.05
MOST_KEYS = 64
"""That a member sets; gloo sets one, and NCCL another."""


class Rendezvous:
    """Serves a store to those who know the token, in a thread of its own, as long as the process lives.

    Args:
        listening: where other members reach this one.
    """

    def __init__(self, listening: socket.socket, token: str, refusals: Refusals) -> None:
        self._token = token
        self.port = int(listening.getsockname()[1])
        self._values: dict[str, bytes] = {}
        self._awaited: dict[str, asyncio.Event] = {}
        listener = Listener("rendezvous", self._serve, BOUNDS, refusals)
        listener.adopt(listening)
        threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True, name="rendezvous").start()

    async def _serve(self, guest: Guest) -> None:
        _, reply = await meet(guest, self._token, FROM_MEMBER, MEMBERS)
        guest.writer.write(framing.encode(reply({"do": "welcome"})))
        own: set[str] = set()
        try:
            while (line := await framing.read(guest.reader)) is not None:
                asked = FROM_MEMBER.check(line)
                match asked["is"]:
                    case "set":
                        value = await guest.reader.readexactly(asked["bytes"])
                        if asked["key"] in self._values or len(own) >= MOST_KEYS:
                            raise framing.BadFrame(
                                f"{asked['key']} is set already, or is one key more than {MOST_KEYS}"
                            )
                        own.add(asked["key"])
                        self._values[asked["key"]] = value
                        if (event := self._awaited.pop(asked["key"], None)) is not None:
                            event.set()
                    case "get":
                        async with asyncio.timeout(VALUE_SECONDS):
                            value = await self._get(asked["key"])
                        guest.writer.write(framing.encode({"do": "value", "bytes": len(value)}) + value)
                        await guest.writer.drain()
                    case _:
                        raise framing.BadFrame("a second hello")
        finally:
            for key in own:
                del self._values[key]

    async def _get(self, key: str) -> bytes:
        while (value := self._values.get(key)) is None:
            await self._awaited.setdefault(key, asyncio.Event()).wait()
        return value


class MemberStore(Store):
    """A member's side: what torch's process groups ask of a store. It fails once its socket is shut down.

    Args:
        host, port: of the first member's rendezvous.

    Raises:
        RuntimeError: it can't be reached, or who answers there does not know the token.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        super().__init__()
        self._at = f"the rendezvous at {host} port {port}"
        self._lock = threading.Lock()
        self._socket = self._reach(host, port, token)
        self._reader = self._socket.makefile("rb")

        self._got: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        with self._asking():
            self._socket.sendall(framing.encode({"is": "set", "key": key, "bytes": len(data)}) + data)

    def get(self, key: str) -> bytes:
        with self._asking():
            return self._got.pop(key, None) or self._ask(key)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all are set, each for VALUE_SECONDS at most; ``get`` then asks for none of them again."""
        with self._asking():
            self._got |= {key: self._ask(key) for key in keys}

    def _ask(self, key: str) -> bytes:
        self._socket.sendall(framing.encode({"is": "get", "key": key}))
        line = self._reader.readline(framing.MAX_FRAME)
        length = FROM_RENDEZVOUS.check(framing.decode(line))["bytes"] if line else 0
        value = self._reader.read(length)
        if not line or len(value) < length:
            raise ConnectionError("it closed the connection")
        return value

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (OSError, framing.BadFrame) as error:
            raise RuntimeError(f"{self._at}: {error}") from error

    def _reach(self, host: str, port: int, token: str) -> socket.socket:
        until = time.monotonic() + REACH_SECONDS
        while True:
            with ExitStack() as stack:
                try:
                    found = socket.create_connection((host, port), max(RETRY_SECONDS, until - time.monotonic()))
                    stack.enter_context(found)
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    answered, came = handshake.introduce(found, token, dict, MEMBERS)
                    if FROM_RENDEZVOUS.check(answered)["do"] != "welcome" or came:
                        raise framing.BadFrame(str(answered.get("why", "an odd welcome"))[:200])
                    found.settimeout(VALUE_SECONDS + REACH_SECONDS)
                    stack.pop_all()
                    return found
                except framing.BadFrame as error:
                    raise RuntimeError(f"{self._at}: {error}") from error
                except OSError as error:
                    if time.monotonic() + RETRY_SECONDS >= until:
                        raise RuntimeError(f"{self._at}: {error}") from error
            time.sleep(RETRY_SECONDS)
