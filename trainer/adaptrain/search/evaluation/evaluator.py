"""A warm evaluator: it has loaded data and imports once, and tries one architecture after the other.

This process has one thread and computes nothing: each trial runs in a child that is forked from it, so that a crash, a
leak or a time-out costs one trial. On a GPU, whose driver takes seconds to start, a child runs trials until one fails.
"""

import contextlib
import json
import logging
import os
import resource
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol

from adaptrain_api.contracts.coordinator_api import Result, TrialWeights
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import AdaptiveTrainingJob

from adaptrain.errors import InvalidJob, Refused
from adaptrain.process.lifetime import die_with_parent
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.shutdown import ShutdownSignal
from adaptrain.rpc import framing
from adaptrain.rpc.handshake import HANDSHAKE_SECONDS, introduce
from adaptrain.rpc.ports import split
from adaptrain.search.evaluation.function_trial import Function, Metrics, Report
from adaptrain.search.evaluation.messages import FROM_COORDINATOR

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 10.0
"""A coordinator that was not heard for so long is called again."""
RETRY_SECONDS = 0.3
ASK_SECONDS = 0.3
"""Between two asks while there is nothing to try."""
TAIL = 2000
"""Last bytes of a trial's output that are kept for its message."""


def evaluate(told: WorkerSettings, job: AdaptiveTrainingJob, farewell: ShutdownSignal) -> Result:
    """Be one of a search's evaluators until asked to leave.

    Raises:
        InvalidJob: its trials can't be run as they are.
        Refused: the coordinator speaks another protocol.
    """
    search = ArchitectureSearch.model_validate(job.spec.search)
    sys.path.insert(0, "")  # what trial.source brought is in the working directory
    bench: TrialRunner
    if search.spec.trial.callable is not None:
        bench = Function(search.spec)
    else:
        from adaptrain.search.evaluation.training_trial import Training  # with torch, which a function may do without

        bench = Training(search.spec, told.checkpoints)
    return Evaluator(told, search, bench, farewell).run()


class TrialRunner(Protocol):
    """What runs trials."""

    @property
    def reusable(self) -> bool:
        """Whether a process should run more than one."""

    @property
    def unread(self) -> list[str]:
        """Dimensions of the space at which the trial that was just run did not look."""

    def begin(self) -> None: ...

    def run(self, given: framing.Frame, report: Report) -> Metrics: ...

    @property
    def left(self) -> dict[str, Any]:
        """What is told of the one that was just run, beside its metrics: ``ranking``, ``weights``."""

    @property
    def keeps(self) -> bool:
        """Whether it could keep the weights of the one that was just run."""

    def keep(self, trial: int) -> TrialWeights | None:
        """Keep them; None: that failed."""


class _Cut(Exception):
    """The connection to the coordinator is no more."""


@dataclass
class _Running:
    """The trial that is under way."""

    given: framing.Frame
    began: float
    """When its run began, or the writing of its weights."""
    stage: Literal["runs", "offers", "saves", "ended"] = "runs"
    """offers: it has ended, and the coordinator is to say whether its weights are wanted, which the child holds. saves:
    they are, and the child writes them. ended: it is to be told."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest that it reported."""
    outcome: framing.Frame | None = None
    """What is to be told of it, once it is known."""


class Evaluator:
    """Runs until it is asked to leave.

    Raises:
        Refused: the coordinator speaks another protocol.
    """

    def __init__(
        self, told: WorkerSettings, search: ArchitectureSearch, bench: TrialRunner, farewell: ShutdownSignal
    ) -> None:
        self._told, self._bench, self._farewell = told, bench, farewell
        self._timeout = search.spec.trial.timeout_seconds
        self._running: _Running | None = None
        self._child: Child | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(farewell, selectors.EVENT_READ)

    def run(self) -> Result:
        """Try what there is to try."""
        ended = 0
        while True:
            try:
                ended += self._serve()
            except (_Cut, OSError, framing.BadFrame) as error:
                log.info("the coordinator is away: %s", error)
                if not select.select([self._farewell], [], [], RETRY_SECONDS)[0]:
                    continue
            self._drop_child()
            return Result(outcome="left", step=ended, epoch=0, message=f"asked to leave after {ended} trials")

    def _serve(self) -> int:
        """Work with one coordinator until we are asked to leave; how many trials ended."""
        line = EvaluatorClient(self._told, self._running)
        if self._running is not None and not line.goes_on and self._running.stage == "runs":
            log.info("trial %d is somebody else's now", self._running.given["trial"])
            self._drop_child()
        self._selector.register(line, selectors.EVENT_READ)
        ended, beat, ask_at = 0, 0.0, 0.0
        said = ""
        """The stage of its trial that this coordinator was told of."""
        try:
            while True:
                now = time.monotonic()
                if self._running is None and now >= ask_at:
                    line.send({"is": "ask"})
                    ask_at = float("inf")
                running = self._running
                if running is not None and running.stage != said:
                    said = running.stage
                    if running.stage == "offers":
                        line.send({"is": "offer", "trial": running.given["trial"], "metrics": running.metrics})
                    elif running.outcome is not None and running.stage == "ended":
                        line.send(running.outcome)
                if now >= beat:
                    line.send({"is": "beat"})
                    beat = now + BEAT_SECONDS
                if now - line.heard > SILENCE_SECONDS:
                    raise _Cut("it is silent")
                self._check_time(now)
                wake = min(beat, ask_at if self._running is None else beat)
                for key, _ in self._selector.select(max(0.0, min(wake - now, BEAT_SECONDS))):
                    if key.fileobj is self._farewell:
                        self._farewell.wait()
                        line.send({"is": "leaving"})
                        return ended
                    if key.fileobj is line:
                        for frame in line.receive():
                            match frame["do"]:
                                case "try":
                                    self._start(frame)
                                    said = ""
                                case "wait":
                                    ask_at = time.monotonic() + ASK_SECONDS
                                case "told":
                                    self._running, ask_at = None, 0.0
                                    ended += 1
                                case "weights":
                                    self._keep_weights(frame["trial"], frame["wanted"])
                                case "stop":
                                    self._prune(frame["trial"])
                    elif self._child is not None and key.fd == self._child.output:
                        self._child.read_output()
                    elif self._child is not None and key.fd == self._child.words:
                        for word in self._child.listen():
                            self._hear(word, line)
        finally:
            self._selector.unregister(line)
            line.close()

    def _start(self, given: framing.Frame) -> None:
        self._running = _Running(given, time.monotonic())
        if self._child is not None and self._child.has_ended:
            self._drop_child(keep=True)
        if self._child is None:
            self._child = Child(self._bench)
            for handle in (self._child.words, self._child.output):
                self._selector.register(handle, selectors.EVENT_READ)
        self._child.begin(given)

    def _hear(self, word: dict[str, Any], line: "EvaluatorClient") -> None:
        running = self._running
        if running is None or running.stage == "ended":
            self._drop_child(keep=True)  # it has died between two trials, or said something after the end of one
            return
        if running.stage != "runs":  # it has written the weights, or has died meanwhile
            assert running.outcome is not None
            if word.get("weights") is None:
                log.warning("trial %d leaves no weights: %s", running.given["trial"], word.get("message", "see above"))
            else:
                running.outcome["weights"] = word["weights"]
            running.stage = "ended"
            if "state" in word or not self._child or not self._child.reusable:
                self._drop_child(keep=True)
            return
        if "step" in word:
            running.metrics = word["metrics"]
            line.send({"is": "report", "trial": running.given["trial"], **word})
            return
        offers = word.pop("offers", False)
        self._end(running, **word)
        if offers:
            running.stage, running.metrics = "offers", word["metrics"]
            return
        if word["state"] == "failed" or not self._child or not self._child.reusable:
            self._drop_child()

    def _keep_weights(self, number: int, wanted: bool) -> None:
        """The coordinator has said whether the weights of the trial that has ended are wanted."""
        running = self._running
        if running is None or running.given["trial"] != number or running.stage != "offers":
            return
        running.stage, running.began = "saves" if wanted else "ended", time.monotonic()
        if self._child is None:
            return
        if not wanted and not self._child.reusable:
            self._drop_child()
            return
        with contextlib.suppress(BrokenPipeError):  # it has died, which it will be heard of
            self._child.begin({"keep": wanted})

    def _prune(self, number: int) -> None:
        running = self._running
        if running is not None and running.given["trial"] == number and running.stage == "runs":
            self._end(running, "pruned", running.metrics, "")
            self._drop_child(keep=True)

    def _check_time(self, now: float) -> None:
        running = self._running
        if self._timeout is None or running is None or running.stage not in ("runs", "saves"):
            return
        if now - running.began <= self._timeout:
            return
        if "supernet" in running.given:
            return  # it takes as long as many trials, and would go on where it was stopped
        if running.stage == "saves":
            log.warning("trial %d leaves no weights: storage took too long", running.given["trial"])
            running.stage = "ended"
            self._drop_child(keep=True)
        else:
            self._end(running, "failed", {}, f"it took longer than trial.timeoutSeconds ({self._timeout} s)")
            self._drop_child(keep=True)

    @staticmethod
    def _end(running: _Running, state: str, metrics: dict[str, float], message: str, **more: Any) -> None:
        said = {"state": state, "metrics": metrics, "message": message}
        running.outcome = {"is": "tell", "trial": running.given["trial"], **said, **more}
        running.stage = "ended"

    def _drop_child(self, keep: bool = False) -> None:
        """End the child, and unless ``keep``, forget a trial that has not ended."""
        if self._child is not None:
            for handle in (self._child.words, self._child.output):
                self._selector.unregister(handle)
            self._child.end()
            self._child = None
        if not keep and self._running is not None and self._running.stage == "runs":
            self._running = None


class EvaluatorClient:
    """A connection to the coordinator."""

    def __init__(self, told: WorkerSettings, running: _Running | None) -> None:
        hello: framing.Frame = {"id": told.id, "name": told.name}
        if running is not None:
            given = running.given
            hello["trial"] = {"number": given["trial"], "architecture": given["architecture"], "why": given["why"]}
        self._socket = socket.create_connection(split(told.coordinator), timeout=HANDSHAKE_SECONDS)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            proved, self._pending = introduce(self._socket, told.token, lambda: hello)
            self._socket.settimeout(SILENCE_SECONDS)
            answer = FROM_COORDINATOR.check(proved)
            if answer["do"] == "refuse":
                raise Refused(f"the coordinator refuses this evaluator: {answer['why']}")
            if answer["do"] != "welcome":
                raise framing.BadFrame(f"{answer['do']} is no answer to a hello")
        except BaseException:
            self._socket.close()
            raise
        self.heard = time.monotonic()
        self.goes_on: bool = answer["go"]

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: framing.Frame) -> None:
        self._socket.sendall(framing.encode(frame))

    def receive(self) -> list[framing.Frame]:
        """What has come.

        Raises:
            _Cut: it was closed.
            BadFrame: what came is no frame of a coordinator.
        """
        data = self._socket.recv(65536)
        if not data:
            raise _Cut("it closed the connection")
        self.heard = time.monotonic()
        found, self._pending = framing.split(self._pending + data)
        return [FROM_COORDINATOR.check(frame) for frame in found]

    def close(self) -> None:
        self._socket.close()


class Child:
    """A forked process that runs trials: one, or on a GPU one after the other."""

    def __init__(self, bench: TrialRunner) -> None:
        self.reusable = bench.reusable
        orders, self._orders = os.pipe()
        self.words, words = os.pipe()
        self.output, output = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            die_with_parent(parent)
            for handle in (self._orders, self.words, self.output):
                os.close(handle)
            _work(bench, orders, words, output)
        for handle in (orders, words, output):
            os.close(handle)
        os.set_blocking(self.output, False)
        self._partial = b""
        self._tail = b""

    def begin(self, given: framing.Frame) -> None:
        """Have it run a trial, or keep the weights of the last one, or not."""
        os.write(self._orders, framing.encode(given))

    @property
    def has_ended(self) -> bool:
        """Whether it is there no more; it can still be listened to."""
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def listen(self) -> Iterator[dict[str, Any]]:
        """What it says: reports, how the trial ended, and what weights it left; if it has died, that."""
        data = os.read(self.words, 65536)
        self.read_output()
        if not data:
            yield {"state": "failed", "metrics": {}, "message": self._last_words()}
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def end(self) -> None:
        """Kill it, if it runs."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        self.read_output()
        for handle in (self._orders, self.words, self.output):
            os.close(handle)

    def _last_words(self) -> str:
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        self.read_output()
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exited with {code}"
        memory = "; memory may be short" if code == -signal.SIGKILL else ""
        return f"its process {how}{memory}: {self._tail.decode(errors='replace').strip() or 'it said nothing'}"

    def read_output(self) -> None:
        """Pass on what it printed, and keep the end of it."""
        while True:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
            self._tail = (self._tail + data)[-TAIL:]


def _work(bench: TrialRunner, orders: int, words: int, output: int) -> NoReturn:
    """The child: runs what it is given until nothing more comes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(output, 1)
    os.dup2(output, 2)

    def say(word: dict[str, Any]) -> None:
        data = json.dumps(word).encode() + b"\n"
        while data:
            data = data[os.write(words, data) :]

    bench.begin()
    with os.fdopen(orders) as given:
        for line in given:
            try:
                frame = json.loads(line)
                metrics = bench.run(frame, lambda step, found: say({"step": step, "metrics": found}))
                more = bench.left | ({"offers": True} if bench.keeps else {})
                say({"state": "complete", "metrics": metrics, "message": "", "unread": bench.unread, **more})
                if bench.keeps and json.loads(given.readline())["keep"]:
                    weights = bench.keep(frame["trial"])
                    say({"weights": None if weights is None else weights.model_dump()})
            except InvalidJob as error:
                say({"state": "failed", "metrics": {}, "message": str(error)[-TAIL:]})
            except Exception:
                traceback.print_exc()
                say({"state": "failed", "metrics": {}, "message": traceback.format_exc()[-TAIL:]})
            sys.stdout.flush()
            sys.stderr.flush()
            if not bench.reusable:
                break
    os._exit(0)
