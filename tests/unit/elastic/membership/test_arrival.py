"""A worker's first words while it prepares, to coordinators of this release and of an older one."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from adaptrain.elastic.membership.client import CoordinatorClient, Identity
from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.rpc import framing

from tests.support.protocol import receive

TOKEN = "secret"
WELCOME = {"do": "welcome", "number": 1}
BEAT = {"is": "beating", "doing": "idle", "age": 0.0, "version": 0, "step": 0}


class Preparing:
    """A worker that prepares, and the coordinator's end of its connection."""

    def __init__(self, server: socket.socket) -> None:
        self.ended: list[framing.Frame] = []
        self._server = server
        address = f"127.0.0.1:{server.getsockname()[1]}"
        self.control = CoordinatorClient(address, TOKEN, Identity("u", "w", "h", 1), SocketAbort(), self.ended.append)  # type: ignore[arg-type]

    def call(self, welcome: framing.Frame) -> tuple[socket.socket, framing.Frame]:
        """The worker's next call, and its hello."""
        connection, _ = self._server.accept()
        connection.settimeout(20)
        return connection, receive(connection, TOKEN, welcome)


@contextmanager
def preparing() -> Iterator[Preparing]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield Preparing(server)


def test_hello_and_beats_say_whether_a_worker_prepares() -> None:
    with preparing() as worker:
        connection, hello = worker.call(WELCOME | {"preparing": True})
        said = framing.frames(connection)
        assert (hello["preparing"], next(said)["preparing"]) == (True, True)
        worker.control.prepared()
        while (frame := next(said))["preparing"]:
            assert frame["is"] == "beating"
        connection.close()
        _, hello = worker.call(WELCOME)
        assert hello["preparing"] is False


def test_an_older_coordinator_is_greeted_once_a_worker_is_prepared() -> None:
    """It would take the worker for a member, for which all others wait."""
    with preparing() as worker:
        connection, hello = worker.call(WELCOME)
        assert hello["preparing"] is True
        assert connection.recv(1) == b"", "the worker hangs up"
        worker._server.settimeout(1)
        with pytest.raises(TimeoutError):
            worker.call(WELCOME)
        worker._server.settimeout(20)
        worker.control.prepared()
        connection, hello = worker.call(WELCOME)
        assert hello["preparing"] is False
        assert next(framing.frames(connection))["is"] == "beating"
        assert worker.control.connected


def test_a_worker_that_is_sent_home_while_it_prepares_ends() -> None:
    with preparing() as worker:
        connection, _ = worker.call(WELCOME | {"preparing": True})
        connection.sendall(framing.encode({"do": "beat", "workers": 7}) + framing.encode({"do": "finish"}))
        assert worker.control.arrived(20)
        assert worker.ended == [{"do": "finish"}]
        assert worker.control.workers == 7
        worker.control.prepared()
        connection.sendall(framing.encode({"do": "go", "save": False}))
        assert worker.control.next()["do"] in ("finish", "go")
        assert len(worker.ended) == 1, "a member ends by itself"


def test_a_worker_that_is_asked_to_end_while_it_prepares_says_so_and_ends() -> None:
    with preparing() as worker:
        connection, _ = worker.call(WELCOME | {"preparing": True})
        said = framing.frames(connection)
        next(said)
        worker.control.leave()
        assert worker.ended == [{"do": "go", "save": False}]
        while next(said)["is"] != "leaving":
            pass


FORKING = """
import os, signal, sys, time
from adaptrain.elastic.membership.client import CoordinatorClient, Identity
from adaptrain.elastic.membership.socket_abort import SocketAbort

control = CoordinatorClient(sys.argv[1], "secret", Identity("u", "w", "h", 1), SocketAbort(), lambda order: None)
while not control.connected:
    time.sleep(0.01)
if (child := os.fork()) == 0:
    time.sleep(600)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_is_missed_at_once_though_a_child_of_its_data_lives_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen([sys.executable, "-c", FORKING, address], stdout=subprocess.PIPE, text=True) as worker:
            connection, _ = server.accept()
            connection.settimeout(60)
            receive(connection, TOKEN, WELCOME | {"preparing": True})
            assert worker.stdout is not None
            child = int(worker.stdout.readline())
            try:
                while connection.recv(1000):
                    pass
                os.kill(child, 0)  # it lives
            finally:
                os.kill(child, signal.SIGKILL)


def test_a_coordinator_lets_in_who_does_not_say_that_it_prepares() -> None:
    coordinator = Coordinator(1, "token", 1, "namespace", "job")
    m = coordinator._membership
    m.hello(0.0, "a", "a", "h", 1, preparing=True)
    coordinator._hear("a", BEAT | {"preparing": True})
    assert (coordinator.progress().joining, coordinator.progress().preparing) == (["a"], ["a"])
    coordinator._hear("a", BEAT)
    assert (coordinator.progress().joining, coordinator.progress().preparing) == (["a"], [])
    assert list(m.members) == ["a"]
