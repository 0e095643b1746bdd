"""The other end of our protocols, for tests that play it."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from adaptrain.rpc import framing, handshake
from adaptrain_api.contracts.proof import Gate
from aiohttp import web


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, said: framing.Frame
) -> framing.Frame:
    """A worker's or evaluator's beginning; the coordinator's answer."""
    asked = await framing.read(reader)
    assert asked is not None
    hello = handshake.hello(token, asked, said)
    writer.write(framing.encode(hello))
    answer = await framing.read(reader)
    if answer is None:
        raise ConnectionError("the coordinator hung up")
    handshake.check_answer(token, asked, hello, answer)
    return answer


def receive(connection: socket.socket, token: str, answer: framing.Frame) -> framing.Frame:
    """A coordinator's beginning; the hello."""
    asked = handshake.challenge()
    connection.sendall(framing.encode(asked))
    hello = next(framing.frames(connection))
    handshake.check_hello(token, asked, hello)
    connection.sendall(framing.encode(handshake.answer(token, asked, hello, answer)))
    return hello


class Guarded:
    """What a coordinator's HTTP does with proofs, for aiohttp."""

    def __init__(self, token: str) -> None:
        self._gate = Gate(token)

    async def answer(self, request: web.Request, say: Callable[[], Awaitable[Any]]) -> web.Response:
        """Answer with JSON, or with a response as it is, to a request that is proved; else challenge."""
        proved = self._gate.admits(request.headers.get("Authorization", ""), request.method, request.path)
        if proved is None:
            return web.Response(status=401, headers={"WWW-Authenticate": self._gate.challenge()})
        said = await say()
        response = said if isinstance(said, web.Response) else web.Response(text=json.dumps(said))
        body = response.body
        assert isinstance(body, bytes)
        response.headers["Authentication-Info"] = proved.answer(response.status, body)
        return response
