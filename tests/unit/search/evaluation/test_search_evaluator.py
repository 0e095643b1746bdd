"""An evaluator, with a coordinator that these tests play."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from adaptrain.process.settings import WorkerSettings
from adaptrain.rpc import framing
from adaptrain.search.evaluation.evaluator import Evaluator
from adaptrain.search.evaluation.function_trial import Metrics, Report
from adaptrain_api.contracts.coordinator_api import TrialWeights
from adaptrain_api.search.job import ArchitectureSearch

from tests.support.protocol import receive

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
    keeps = False
    left: dict[str, Any] = {}
    unread: list[str] = []

    def begin(self) -> None: ...

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        return {"score": 1.0, "process": float(os.getpid())}

    def keep(self, trial: int) -> TrialWeights | None:
        return None


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
        self._frames = framing.frames(connection)

    def hear(self, kind: str) -> framing.Frame:
        """The next frame of a kind; beats are answered on the way."""
        for frame in self._frames:
            if frame["is"] == "beat":
                self.say({"do": "beat"})
            if frame["is"] == kind:
                return frame
        raise AssertionError(f"it hung up, and said no {kind}")

    def say(self, frame: framing.Frame) -> None:
        self._connection.sendall(framing.encode(frame))

    def hang_up(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def have_tried(self, number: int, **more: Any) -> framing.Frame:
        """Give out a trial; what is told of it."""
        self.hear("ask")
        self.say({"do": "try", "trial": number, "architecture": [0], "why": {}, **more})
        told = self.hear("tell")
        self.say({"do": "told", "trial": number})
        return told


@contextmanager
def evaluator(bench: Reused, search: ArchitectureSearch = SEARCH) -> Iterator[Callable[[], Played]]:
    """An evaluator, and what accepts its next connection, as the next coordinator does."""
    leave = Leave()
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as open_:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        told = WorkerSettings(None, "secret", address, "0", "evaluator-0", "127.0.0.1", None)
        works = threading.Thread(target=Evaluator(told, search, bench, leave).run, daemon=True)
        works.start()
        server.settimeout(20)
        played: list[Played] = []

        def accept() -> Played:
            connection, _ = server.accept()
            open_.enter_context(connection)
            connection.settimeout(20)
            receive(connection, "secret", {"do": "welcome", "number": len(played) + 1, "go": True})
            played.append(Played(connection))
            return played[-1]

        yield accept
        leave.ask()
        assert played[-1].hear("leaving")
        works.join(20)
        assert not works.is_alive()


class Slow(Reused):
    """Trials that take longer than they may."""

    reusable = False
    left = {"ranking": [[[0], 1.0]]}

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        time.sleep(1.5)
        return {"score": 1.0}


def test_the_network_that_all_share_may_take_longer_than_a_trial() -> None:
    spec = SEARCH.spec.model_copy(update={"trial": SEARCH.spec.trial.model_copy(update={"timeout_seconds": 1})})
    with evaluator(Slow(), SEARCH.model_copy(update={"spec": spec})) as accept:
        coordinator = accept()
        told = coordinator.have_tried(0)
        assert told["state"] == "failed"
        assert "longer than trial.timeoutSeconds (1 s)" in told["message"]
        told = coordinator.have_tried(1, supernet=True)
        assert (told["state"], told["ranking"]) == ("complete", [[[0], 1.0]])


def test_a_process_that_dies_between_two_trials_is_replaced() -> None:
    with evaluator(Reused()) as accept:
        coordinator = accept()
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


class Keeps(Reused):
    """Trials that leave weights: a file in a folder, which tells of the process that wrote it."""

    keeps = True

    def __init__(self, folder: Path, reusable: bool = False) -> None:
        self.folder, self.reusable = folder, reusable

    def keep(self, trial: int) -> TrialWeights | None:
        path = self.folder / str(trial)
        try:
            path.write_text(str(os.getpid()))
        except OSError:
            return None
        return TrialWeights(path=f"trials/{trial}-{trial:016x}.safetensors", sha256=f"{trial:064x}")


@pytest.mark.parametrize("reusable", [False, True])
def test_weights_are_written_if_the_coordinator_wants_them(tmp_path: Path, reusable: bool) -> None:
    """And the answer may be the next coordinator's: this one is asked again."""
    with evaluator(Keeps(tmp_path, reusable)) as accept:
        coordinator = accept()
        for number, wanted in enumerate([True, False, True]):
            coordinator.hear("ask")
            coordinator.say({"do": "try", "trial": number, "architecture": [0], "why": {}})
            offer = coordinator.hear("offer")
            assert (offer["trial"], offer["metrics"]["score"]) == (number, 1.0)
            if number == 2:
                coordinator.hang_up()
                coordinator = accept()
                assert coordinator.hear("offer") == offer
            assert not (tmp_path / str(number)).exists(), "nobody has said that they are wanted"
            coordinator.say({"do": "weights", "trial": number, "wanted": wanted})
            told = coordinator.hear("tell")
            assert (told["state"], told["metrics"], "weights" in told) == ("complete", offer["metrics"], wanted)
            coordinator.say({"do": "told", "trial": number})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]
        writers = {float(path.read_text()) for path in tmp_path.iterdir()}
        assert len(writers) == (1 if reusable else 2)


def test_a_trial_whose_weights_go_lost_is_told_without(tmp_path: Path) -> None:
    """Its process dies with them before it could write, or storage refuses: what it found still counts."""
    with evaluator(Keeps(tmp_path)) as accept:
        coordinator = accept()
        coordinator.hear("ask")
        coordinator.say({"do": "try", "trial": 0, "architecture": [0], "why": {}})
        offer = coordinator.hear("offer")
        os.kill(int(offer["metrics"]["process"]), signal.SIGKILL)
        told = coordinator.hear("tell")
        assert (told["state"], told["metrics"], "weights" in told) == ("complete", offer["metrics"], False)
        coordinator.say({"do": "told", "trial": 0})
        (tmp_path / "1").mkdir()
        coordinator.hear("ask")
        coordinator.say({"do": "try", "trial": 1, "architecture": [1], "why": {}})
        coordinator.hear("offer")
        coordinator.say({"do": "weights", "trial": 1, "wanted": True})
        told = coordinator.hear("tell")
        assert (told["state"], "weights" in told) == ("complete", False)
        coordinator.say({"do": "told", "trial": 1})
