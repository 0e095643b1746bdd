"""Control connections that can be disturbed: a proxy between the workers and their coordinator; and data sockets."""

import contextlib
import ctypes
import os
import socket
import threading

PIDFD_GETFD = 438
"""Number of the system call, the same on every architecture."""


class Wires:
    """Forwards every connection to one address, until it is told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._muted: set[tuple[int, str]] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hang_up(self, process: int) -> None:
        """Break a worker's connection."""
        for near, far in self._of(process):
            for sock in (near, far):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def mute(self, process: int, direction: str) -> None:
        """From now on nothing arrives of what a worker says (``up``), or of what it is told (``down``)."""
        with self._lock:
            self._muted |= {(near.getpeername()[1], direction) for near, _ in self._of(process)}

    def unmute(self) -> None:
        """Connections that lost something are broken: what was dropped is not sent again."""
        with self._lock:
            broken, self._muted = {port for port, _ in self._muted}, set()
            pairs = list(self._pairs.items())
        for near, far in pairs:
            with contextlib.suppress(OSError):
                if near.getpeername()[1] in broken:
                    near.shutdown(socket.SHUT_RDWR)
                    far.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()

    def _of(self, process: int) -> list[tuple[socket.socket, socket.socket]]:
        ports = {sock.getsockname()[1] for sock in sockets_of(process)}
        found = []
        for near, far in list(self._pairs.items()):
            with contextlib.suppress(OSError):
                if near.getpeername()[1] in ports:
                    found.append((near, far))
        return found

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=1)
            except OSError:  # there is no coordinator
                near.close()
                continue
            far.settimeout(None)
            self._pairs[near] = far
            port = near.getpeername()[1]
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, port, direction, near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, port: int, way: str, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if (port, way) not in self._muted:
                    sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._pairs.pop(near, None)


def sever(process: int, spared: int) -> int:
    """Break a process's connections to all ports but one. Returns how many there were."""
    count = 0
    for sock in sockets_of(process):
        with contextlib.suppress(OSError):
            if sock.getpeername()[1] != spared:
                sock.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def sockets_of(process: int) -> list[socket.socket]:
    """Duplicates of a process's connected TCP sockets."""
    found = []
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return []
    try:
        for entry in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/{process}/fd/{entry}").startswith("socket:"):
                    continue
                copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, handle, int(entry), 0)
                if copy < 0:
                    continue
                sock = socket.socket(fileno=copy)
                if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
                    sock.getpeername()  # raises for one that listens
                    found.append(sock)
    except FileNotFoundError:
        pass
    finally:
        os.close(handle)
    return found
