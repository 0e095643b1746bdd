"""Asking a coordinator over HTTP, with a proof of its job's token."""

from http.client import HTTPConnection

from adaptrain_api.contracts.proof import Caller

SECONDS = 2.0
LARGEST = 16 * 1024 * 1024


class NotOurs(ConnectionError):
    """What answered doesn't know the token, or refuses."""


def ask(address: tuple[str, int], caller: Caller, path: str, body: bytes | None = None) -> bytes:
    """What the coordinator answers to ``GET path``, or to ``POST path`` with a body.

    Raises:
        OSError: it can't be reached, refuses, or does not prove who it is.
        HTTPException: what answers does not speak HTTP.
    """
    for _ in range(2):  # at first it gives a nonce
        connection = HTTPConnection(*address, timeout=SECONDS)
        try:
            method = "GET" if body is None else "POST"
            headers = {"Authorization": caller.authorization(method, path, body or b"")}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read(LARGEST)
        finally:
            connection.close()
        if answer.status != 401 or not caller.challenged(answer.getheader("WWW-Authenticate", "")):
            break
    if not caller.believes(answer.getheader("Authentication-Info", ""), answer.status, said):
        raise NotOurs(f"{address[0]}:{address[1]} does not prove that it knows the job's token")
    if answer.status != 200:
        raise NotOurs(f"{path}: {answer.status} {said[:200].decode(errors='replace')}")
    return said
