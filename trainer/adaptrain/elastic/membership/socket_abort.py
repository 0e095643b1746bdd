"""Un-blocking whoever waits in a collective for a peer that is hung or cut off, by shutting down the group's sockets.

Gloo has no way to abort a collective: ``abort()`` does nothing, and dropping the group waits for the operation's
time-out. A socket that is shut down fails every operation on it within a millisecond.
"""

import fcntl
import os
import socket
import termios
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.005
"""Seconds between two rounds: a group that is being formed may open a socket just after one."""


def _sockets() -> Iterator[tuple[int, str]]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # closed since it was listed
            continue
        if target.startswith("socket:"):
            yield int(fd), target


class SocketAbort:
    """Knows which of the process's sockets belong to the group, as those that appeared while it was formed.

    A user's own connections (to a bucket, to a tracker) are left alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: set[str] = set()
        self._own: set[str] | None = set()
        self._exempt: Callable[[], set[str]] = set

    def exempt(self, exempt: Callable[[], set[str]]) -> None:
        """Name sockets (as ``inode(sock)`` gives them) that are never shut down."""
        self._exempt = exempt

    def forming(self) -> None:
        """Whatever appears from now on belongs to the group."""
        with self._lock:
            self._before, self._own = {target for _, target in _sockets()}, None

    def formed(self) -> None:
        """Whatever appears from now on doesn't."""
        with self._lock:
            self._own = {target for _, target in _sockets()} - self._before

    def abort(self) -> None:
        """Shut down every connection of the group."""
        self._each(lambda connection: connection.shutdown(socket.SHUT_RDWR))

    def unread(self) -> bool:
        """Whether a connection of the group has received what nobody has read yet. One that is shut down receives no
        more, and the kernel doesn't answer while somebody reads."""
        return any(self._each(_waiting))

    def _each(self, do: Callable[[socket.socket], T]) -> list[T]:
        """What is done to every connection of the group on which it is possible."""
        done = []
        with self._lock:
            exempt = self._exempt()
            for fd, target in _sockets():
                if target in exempt or (target in self._before if self._own is None else target not in self._own):
                    continue
                try:
                    # A duplicate, so that a number that is closed and used again meanwhile does no harm.
                    duplicate = os.dup(fd)
                except OSError:
                    continue
                sock = socket.socket(fileno=duplicate)
                try:
                    # Gloo aborts the process when its listening socket fails.
                    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and not listens:
                        done.append(do(sock))
                except OSError:
                    pass
                finally:
                    sock.close()
        return done


def _waiting(connection: socket.socket) -> int:
    """Bytes that were received and not read."""
    count = array("i", [0])
    fcntl.ioctl(connection, termios.FIONREAD, count)
    return count[0]


def inode(sock: socket.socket) -> str:
    """The name of a socket as ``/proc`` shows it."""
    return os.readlink(f"/proc/self/fd/{sock.fileno()}")
