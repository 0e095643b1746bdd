"""How two ends show each other that they know a job's token, without sending it.

Each end answers the other's *nonce* (a number used once) with an HMAC (RFC 2104) over it, the role in which it speaks
and what it says; so an answer is of no use on another connection, in the other direction or for another message.
Connections of workers do that once (``adaptrain.rpc.handshake``). Over HTTP it is done with each request, much as
in digest authentication (RFC 7616): a server that is asked without a proof gives a nonce, which serves for further
requests, and its answers are proved as well.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

NONCE_SECONDS = 300.0
"""A server takes its own nonce for so long."""
SCHEME = "Adaptrain"
_FIELD = re.compile(r'(\w{1,16})="([^"\\]{0,300})"')


def make_nonce() -> str:
    """A number that nobody has seen before: 128 random bits."""
    return secrets.token_hex(16)


def proof(token: str, role: str, *said: str) -> str:
    """What only a holder of the token can say in a role, of these words."""
    words = b"".join(len(word).to_bytes(8, "big") + word for word in map(_bytes, (role, *said)))
    return hmac.new(token.encode(), words, hashlib.sha256).hexdigest()


def proved(found: object, token: str, role: str, *said: str) -> bool:
    """Whether that is the proof of these words."""
    return isinstance(found, str) and hmac.compare_digest(_bytes(found), _bytes(proof(token, role, *said)))


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class _Given:
    """A nonce that a caller has proved with, and the highest count that came with it."""

    until: float
    count: int


class Gate:
    """A server's side: who may ask, and the proofs of its answers. Not for several threads at once."""

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token, self._clock = token, clock
        self._own = secrets.token_hex(32)
        self._used: dict[str, _Given] = {}

    def challenge(self) -> str:
        """The ``WWW-Authenticate`` header that gives a nonce. Nothing is remembered of it until it was proved."""
        said = f"{self._clock():.0f}.{make_nonce()}"
        return f'{SCHEME} nonce="{said}.{proof(self._own, "nonce", said)}"'

    def admits(self, authorization: str, method: str, path: str) -> "Admitted | None":
        """What is proved by the ``Authorization`` header of a request; None: nothing, and a challenge is due."""
        said = _fields(authorization)
        nonce, count, body, found = (said.get(key, "") for key in ("nonce", "count", "body", "proof"))
        if not (count.isascii() and count.isdigit() and len(count) < 16):
            return None
        if not proved(found, self._token, "request", nonce, count, method, path, body):
            return None
        stamp, _, mac = nonce.rpartition(".")
        if not proved(mac, self._own, "nonce", stamp):
            return None
        now, until = self._clock(), float(stamp.partition(".")[0]) + NONCE_SECONDS
        self._used = {key: given for key, given in self._used.items() if given.until > now}
        used = self._used.setdefault(nonce, _Given(until, -1))
        if now >= until or int(count) <= used.count:
            return None
        used.count = int(count)
        return Admitted(self._token, nonce, count, body)


@dataclass(frozen=True)
class Admitted:
    """A request that was proved, but for its body, which may not have been read yet."""

    token: str
    nonce: str
    count: str
    body: str
    """The SHA-256 that the body must have."""

    def holds(self, body: bytes) -> bool:
        """Whether this is the body that was proved."""
        return hmac.compare_digest(_bytes(self.body), digest(body).encode())

    def answer(self, status: int, body: bytes) -> str:
        """The ``Authentication-Info`` header of an answer."""
        return f'proof="{proof(self.token, "answer", self.nonce, self.count, str(status), digest(body))}"'


class Caller:
    """A client's side, towards one server: one request at a time."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._nonce = ""
        self._count = 0

    def authorization(self, method: str, path: str, body: bytes = b"") -> str:
        """The ``Authorization`` header of the next request. The first one is refused, with a nonce."""
        self._count += 1
        words = self._nonce, str(self._count), method, path, digest(body)
        keys = ("nonce", "count", "body", "proof")
        values = (words[0], words[1], words[4], proof(self._token, "request", *words))
        return f"{SCHEME} " + ", ".join(f'{key}="{value}"' for key, value in zip(keys, values, strict=True))

    def challenged(self, header: str) -> bool:
        """Whether a refusal (401) gives a nonce that has not been tried, in its ``WWW-Authenticate`` header: then the
        request is to be made again."""
        nonce = _fields(header).get("nonce", "")
        if not nonce or nonce == self._nonce:
            return False
        self._nonce, self._count = nonce, 0
        return True

    def believes(self, header: str, status: int, body: bytes) -> bool:
        """Whether the answer to the last request is from a holder of the token, by its ``Authentication-Info``."""
        found = _fields(header).get("proof")
        return proved(found, self._token, "answer", self._nonce, str(self._count), str(status), digest(body))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _fields(header: str) -> dict[str, str]:
    return dict(_FIELD.findall(header[:2000]))
