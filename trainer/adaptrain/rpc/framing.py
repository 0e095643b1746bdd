"""Frames on a control connection: one JSON object a line, limited in length, so that garbage can't fill memory.

What a frame may say is in ``frames``, and how a connection begins in ``handshake``.
"""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

MAX_FRAME = 128 * 1024
"""Longest frame, bytes."""
PROTOCOL = 7
"""Raised with every incompatible change of the frames, and of what members send to each other; a hello with another
number is refused."""

BEAT_SECONDS = 0.25
"""A worker says this often what its training thread does."""
SILENCE_SECONDS = 3.0
"""Who is not heard for this long is taken for lost, on either end. Only hung processes and lost nodes are found this
way: the kernel closes a killed process's connection at once."""

Frame = dict[str, Any]


class BadFrame(Exception):
    """What arrived is no frame of ours."""


def encode(frame: Frame) -> bytes:
    data = json.dumps(frame, separators=(",", ":")).encode() + b"\n"
    if len(data) > MAX_FRAME:
        raise BadFrame(f"a frame of {len(data)} bytes exceeds the limit of {MAX_FRAME}")
    return data


def decode(line: bytes) -> Frame:
    try:
        frame = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFrame("not JSON") from error
    if not isinstance(frame, dict):
        raise BadFrame("not an object")
    return frame


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, or None at the end. The reader must have been made with ``limit=MAX_FRAME``."""
    try:
        line = await reader.readline()
    except ValueError as error:
        raise BadFrame("too long") from error
    return decode(line) if line else None


def frames(sock: socket.socket, pending: bytes = b"") -> Iterator[Frame]:
    """Frames from a blocking socket until its end; ``pending`` was read from it before.

    Raises:
        BadFrame: the peer does not speak this protocol.
        OSError: the connection broke, or its time-out passed without a word.
    """
    found, pending = split(pending)
    yield from found
    while data := sock.recv(65536):
        found, pending = split(pending + data)
        yield from found


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """The frames that are whole, and the beginning of the next one.

    Raises:
        BadFrame: the peer does not speak this protocol.
    """
    *lines, rest = data.split(b"\n")
    if len(rest) > MAX_FRAME:
        raise BadFrame("too long")
    return [decode(line) for line in lines], rest
