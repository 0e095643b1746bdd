"""How a worker is asked to leave."""

import os
import signal
import socket


class ShutdownSignal:
    """Hears SIGTERM from now on, for a thread to act on: the training thread may sit in a collective."""

    def __init__(self) -> None:
        self._heard, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.siginterrupt(signal.SIGTERM, False)  # who reads or writes a socket is not disturbed
        os.register_at_fork(after_in_child=self._forget)

    def wait(self) -> None:
        """Wait for SIGTERM, which may have come before."""
        while signal.SIGTERM not in self._heard.recv(1):
            pass

    def fileno(self) -> int:
        """Readable when something was heard: for who waits for other things as well, and then calls ``wait``."""
        return self._heard.fileno()

    @staticmethod
    def _forget() -> None:
        """A child of a user's script ends when it is told to."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
