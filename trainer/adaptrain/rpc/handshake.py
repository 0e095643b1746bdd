"""How a pod's connection to its coordinator, or to another pod's rendezvous, begins: each end proves that it knows the
job's token, which is not sent.

::

    coordinator  challenge  nonce
    worker       hello      protocol, id, …, nonce; proof of all that and of the coordinator's nonce
    coordinator  welcome    number, …; or refuse, why; proof of all that and of both nonces

A worker obeys nothing that was not proved, and a coordinator hears nobody who has not proved. Either closes the
connection otherwise. A proof names the role of who gives it, so it is of no use on a connection of the other sort.
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from adaptrain_api.contracts.proof import make_nonce, proof, proved

from adaptrain.rpc import framing
from adaptrain.rpc.framing import Frame
from adaptrain.rpc.messages import Dialect, Nonce

HANDSHAKE_SECONDS = 5.0
"""Longest time until both ends have proved who they are."""
LONGEST = 2 * framing.MAX_FRAME

_CHALLENGE = Dialect("do", {"challenge": {"nonce": Nonce}})


@dataclass(frozen=True)
class Roles:
    """In which role each end of a connection speaks."""

    caller: str
    listener: str


CONTROL = Roles("worker", "coordinator")
MEMBERS = Roles("member", "rendezvous")


class Unproved(framing.BadFrame):
    """The other end does not know the token."""


def challenge() -> Frame:
    """What a coordinator says first."""
    return {"do": "challenge", "nonce": make_nonce()}


def hello(token: str, challenge: Frame, said: Frame, roles: Roles = CONTROL) -> Frame:
    """What a worker answers to a challenge: what it says of itself, proved."""
    said = {"is": "hello", "protocol": framing.PROTOCOL, **said, "nonce": make_nonce()}
    return said | {"proof": proof(token, roles.caller, str(challenge["nonce"]), _words(said))}


def check_hello(token: str, challenge: Frame, said: Frame, roles: Roles = CONTROL) -> None:
    """
    Raises:
        Unproved: this hello does not answer the challenge.
    """
    if not isinstance(said.get("nonce"), str) or not proved(
        said.get("proof"), token, roles.caller, challenge["nonce"], _words(said)
    ):
        raise Unproved("a hello that does not prove that its sender knows the token")


def answer(token: str, challenge: Frame, hello: Frame, said: Frame, roles: Roles = CONTROL) -> Frame:
    """What a coordinator answers to a hello (``welcome`` or ``refuse``), proved."""
    return said | {"proof": proof(token, roles.listener, challenge["nonce"], hello["nonce"], _words(said))}


def check_answer(token: str, challenge: Frame, hello: Frame, said: Frame, roles: Roles = CONTROL) -> None:
    """
    Raises:
        Unproved: who answers does not belong to this job.
    """
    if not proved(said.get("proof"), token, roles.listener, challenge["nonce"], hello["nonce"], _words(said)):
        raise Unproved(f"what answers at the {roles.listener}'s address does not prove that it knows the token")


def introduce(sock: socket.socket, token: str, say: Callable[[], Frame], roles: Roles = CONTROL) -> tuple[Frame, bytes]:
    """A worker's side, on a blocking socket, whose time-out it changes; ``say`` is asked for what it says of itself.
    Returns the answer, which is proved, and what came after it.

    Raises:
        BadFrame: the other end does not speak this protocol, or does not know the token.
        OSError: the connection broke, or the coordinator took too long.
    """
    until = time.monotonic() + HANDSHAKE_SECONDS
    came = b""

    def frame() -> Frame:
        nonlocal came
        while b"\n" not in came:
            if len(came) > LONGEST:
                raise framing.BadFrame("too long")
            sock.settimeout(max(0.001, until - time.monotonic()))
            if not (data := sock.recv(65536)):
                raise ConnectionError(f"the {roles.listener} closed the connection")
            came += data
        line, _, came = came.partition(b"\n")
        return framing.decode(line)

    asked = _CHALLENGE.check(frame())
    greeting = hello(token, asked, say(), roles)
    sock.sendall(framing.encode(greeting))
    answered = frame()
    check_answer(token, asked, greeting, answered, roles)
    return answered, came


def _words(said: Frame) -> str:
    return json.dumps({k: v for k, v in said.items() if k != "proof"}, sort_keys=True, separators=(",", ":"))
