"""Ports that are known before anybody listens on them."""

import socket


def hold_port(host: str) -> socket.socket:
    """A port that nobody else is given, and on which a process that sets SO_REUSEADDR can listen all the same."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held
