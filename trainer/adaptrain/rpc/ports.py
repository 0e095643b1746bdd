"""Ports: listening at all addresses of a machine, IPv6 and IPv4, and ports that are known before anybody listens."""

import socket


def listen_on(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket; "": at every address that this machine has, of either family.

    Raises:
        OSError: the port is taken, or the address isn't ours.
    """
    bound = _bind(host, port)
    bound.listen(backlog)
    return bound


def hold_port(host: str) -> socket.socket:
    """A port that nobody else is given, and on which a process that sets SO_REUSEADDR can listen all the same."""
    return _bind(host, 0)


def join(host: str, port: int) -> str:
    """``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """The two parts of ``host:port`` or ``[address]:port``.

    Raises:
        ValueError: there is no port.
    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def listens_at(host: str) -> str:
    """Where a worker that others reach at ``host`` listens: nowhere but on this machine if they are all here."""
    return host if host in ("localhost", "::1") or host.startswith("127.") else ""


def _bind(host: str, port: int) -> socket.socket:
    if host in ("", "::"):
        try:
            return _bound(socket.AF_INET6, "::", port)
        except OSError:  # a kernel without IPv6; a port that is taken is so for IPv4 as well
            return _bound(socket.AF_INET, "0.0.0.0", port)
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return _bound(family, host, port)


def _bound(family: int, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
