"""A small HTTP server for metrics, health and progress, on a thread of its own: one request a connection, bounded in
bytes and in time. It has few descriptors and no threads for its connections, so nobody there can do harm to the rest of
the process."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from adaptrain_api.contracts.proof import Admitted, Gate
from prometheus_client import CollectorRegistry, generate_latest

from adaptrain.observability.metrics import Refusals
from adaptrain.rpc.framing import BadFrame
from adaptrain.rpc.listener import Bounds, Guest, Listener

log = logging.getLogger(__name__)

LARGEST = 16 * 1024 * 1024
"""Bytes of what is told."""
FRESH_SECONDS = 0.25
"""Metrics are collected no more often than this: collecting takes time from training."""
BOUNDS = Bounds(strangers=48, per_address=16, seconds=10.0, per_second=200.0, most=48)
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    headers: dict[str, str]
    """By name in lower case."""

    @property
    def length(self) -> int:
        said = self.headers.get("content-length", "0")
        if not (said.isascii() and said.isdigit() and len(said) < 16):
            raise BadFrame(f"Content-Length is {said[:40]!r}")
        return int(said)


@dataclass(frozen=True)
class Answer:
    status: HTTPStatus
    body: bytes
    kind: str = TEXT
    header: tuple[str, str] | None = None


@dataclass(frozen=True)
class Pages:
    """What a coordinator serves beside metrics, to who proves that it knows the token."""

    gate: Gate
    progress: Callable[[], Awaitable[dict[str, Any]]]
    told: Callable[[bytes], Awaitable[None]] | None = None
    """Takes what is posted to ``/trials``, or raises ValueError."""


def serve(host: str, port: int, registry: CollectorRegistry, refusals: Refusals, pages: Pages | None = None) -> int:
    """Serve ``/metrics`` and ``/healthz`` to anyone, and ``pages``.

    Returns the port (``port`` 0: any free one).

    Raises:
        OSError: the port can't be opened.
    """
    site = _Site(registry, pages)
    listener = Listener("http", site.serve, BOUNDS, refusals)
    opened = listener.open(host, port)
    threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True, name="http").start()
    return opened


class _Site:
    def __init__(self, registry: CollectorRegistry, pages: Pages | None) -> None:
        self._registry = registry
        self._pages = pages
        self._metrics = b""
        self._collected = -FRESH_SECONDS

    async def serve(self, guest: Guest) -> None:
        request = await _head(guest.reader)
        answer = await self._answer(request, guest)
        lines = [
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
            f"Content-Type: {answer.kind}",
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
        ]
        if answer.header is not None:
            lines.append(": ".join(answer.header))
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        guest.writer.write(head + (b"" if request.method == "HEAD" else answer.body))
        guest.writer.write_eof()
        await guest.writer.drain()
        await guest.reader.read(1)  # its end: closed before, what was sent may be lost

    async def _answer(self, request: Request, guest: Guest) -> Answer:
        match request.method, request.path:
            case "GET" | "HEAD", "/metrics":
                return Answer(HTTPStatus.OK, self._collect(), "text/plain; version=0.0.4; charset=utf-8")
            case "GET" | "HEAD", "/healthz":
                return Answer(HTTPStatus.OK, b"ok\n")
            case "GET", "/progress" if self._pages is not None:
                return await self._admit(self._pages, request, guest, None)
            case "POST", "/trials" if self._pages is not None and self._pages.told is not None:
                return await self._admit(self._pages, request, guest, self._pages.told)
        return Answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and, on a coordinator, /progress\n")

    async def _admit(
        self, pages: Pages, request: Request, guest: Guest, told: Callable[[bytes], Awaitable[None]] | None
    ) -> Answer:
        proved = pages.gate.admits(request.headers.get("authorization", ""), request.method, request.path)
        if proved is None:
            words = b"the job's token is to be proved: see the Secret named after the job\n"
            return Answer(HTTPStatus.UNAUTHORIZED, words, header=("WWW-Authenticate", pages.gate.challenge()))
        if request.length > LARGEST:
            words = f"at most {LARGEST} bytes are taken\n".encode()
            return _proved(proved, Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words))
        body = await guest.reader.readexactly(request.length)
        if not proved.holds(body):
            return _proved(proved, Answer(HTTPStatus.BAD_REQUEST, b"the body is another one than was proved\n"))
        if told is not None:
            try:
                await told(body)
            except ValueError as error:
                return _proved(proved, Answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode()))
        said = json.dumps(await pages.progress()).encode()
        return _proved(proved, Answer(HTTPStatus.OK, said, "application/json"))

    def _collect(self) -> bytes:
        now = time.monotonic()
        if now - self._collected >= FRESH_SECONDS:
            self._metrics, self._collected = generate_latest(self._registry), now
        return self._metrics


def _proved(proved: Admitted, answer: Answer) -> Answer:
    header = "Authentication-Info", proved.answer(answer.status.value, answer.body)
    return Answer(answer.status, answer.body, answer.kind, header)


async def _head(reader: asyncio.StreamReader) -> Request:
    """
    Raises:
        BadFrame: it is no request.
        EOFError: the connection was closed before.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise BadFrame("the head of a request is too long") from error
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
    except ValueError:
        raise BadFrame("no request line") from None
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise BadFrame(f"{version[:20]!r} is no version of HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or name in headers:
            raise BadFrame(f"a header that is none, or given twice: {line[:40]!r}")
        headers[name] = value.strip()
    if "transfer-encoding" in headers:
        raise BadFrame("Transfer-Encoding is not taken")
    return Request(method, target.partition("?")[0], headers)
