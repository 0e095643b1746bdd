"""An evaluator, with a coordinator that these tests play."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from adaptrain.elastic import wire
from adaptrain.process import WorkerSettings
from adaptrain.search.evaluator import Evaluator
from adaptrain.search.trial import Metrics, Report
from adaptrain_api.search import ArchitectureSearch

SEARCH = ArchitectureSearch.model_validate(
    {
        "metadata": {"name": "digits"},
        "spec": {
            "space": {"parameters": [{"name": "width", "values": [8, 16]}]},
            "objectives": [{"metric": "score", "goal": "maximize"}],
            "budget": {"trials": 10},
            "trial": {"callable": "m:f"},
        },
    }
)


class Reused:
    """Trials of a process that runs several, as on a GPU."""

    reusable = True
    unread: list[str] = []

    def begin(self) -> None: ...

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        return {"score": 1.0, "process": float(os.getpid())}

    def keep(self, trial: int) -> dict[str, Any]:
        return {}


class Leave:
    """What a worker hears SIGTERM by; here it is asked without a signal."""

    def __init__(self) -> None:
        self._heard, self._asks = socket.socketpair()

    def ask(self) -> None:
        self._asks.send(b"x")

    def wait(self) -> None:
        self._heard.recv(1)

    def fileno(self) -> int:
        return self._heard.fileno()


class Played:
    """The coordinator's end of one evaluator's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = wire.frames(connection)

    def hear(self, kind: str) -> wire.Frame:
        """The next frame of a kind; beats are answered on the way."""
        for frame in self._frames:
            if frame["is"] == "beat":
                self.say({"do": "beat"})
            if frame["is"] == kind:
                return frame
        raise AssertionError(f"it hung up, and said no {kind}")

    def say(self, frame: wire.Frame) -> None:
        self._connection.sendall(wire.encode(frame))

    def have_tried(self, number: int, **more: Any) -> wire.Frame:
        """Give out a trial; what is told of it."""
        self.hear("ask")
        self.say({"do": "try", "trial": number, "architecture": [0], "why": {}, **more})
        told = self.hear("tell")
        self.say({"do": "told", "trial": number})
        return told


@contextmanager
def evaluator(bench: Reused, search: ArchitectureSearch = SEARCH) -> Iterator[Played]:
    leave = Leave()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        told = WorkerSettings(None, "secret", address, "0", "evaluator-0", "127.0.0.1", None)
        works = threading.Thread(target=Evaluator(told, search, bench, leave).run, daemon=True)
        works.start()
        server.settimeout(20)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            played = Played(connection)
            assert played.hear("hello")["token"] == "secret"
            played.say({"do": "welcome", "number": 1, "go": True})
            yield played
            leave.ask()
            assert played.hear("leaving")
        works.join(20)
        assert not works.is_alive()


class Slow(Reused):
    """Trials that take longer than they may."""

    reusable = False

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        time.sleep(1.5)
        return {"score": 1.0}

    def keep(self, trial: int) -> dict[str, Any]:
        return {"ranking": [[[0], 1.0]]}


def test_the_network_that_all_share_may_take_longer_than_a_trial() -> None:
    spec = SEARCH.spec.model_copy(update={"trial": SEARCH.spec.trial.model_copy(update={"timeout_seconds": 1})})
    with evaluator(Slow(), SEARCH.model_copy(update={"spec": spec})) as coordinator:
        told = coordinator.have_tried(0)
        assert told["state"] == "failed"
        assert "longer than trial.timeoutSeconds (1 s)" in told["message"]
        told = coordinator.have_tried(1, supernet=True)
        assert (told["state"], told["ranking"]) == ("complete", [[[0], 1.0]])


def test_a_process_that_dies_between_two_trials_is_replaced() -> None:
    with evaluator(Reused()) as coordinator:
        first = coordinator.have_tried(0)
        again = coordinator.have_tried(1)
        assert again["metrics"] == first["metrics"], "the process is used again"
        process = int(first["metrics"]["process"])
        os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):  # the evaluator has seen it already
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        after = coordinator.have_tried(2)
        assert after["state"] == "complete"
        assert after["metrics"]["process"] != process
