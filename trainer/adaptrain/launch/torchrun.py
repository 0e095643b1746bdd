"""``launcher: torchrun``: runs a script that is written for torchrun, in torchrun's place.

What torchrun's agents agree on through a rendezvous store (who takes part, who is which rank, who is lost) this
launcher hears from the job's coordinator, as every other worker does. So there is no store that is lost with a worker,
and while the coordinator itself is replaced the script goes on. As with torchrun, every change of membership ends the
script's processes and starts them anew, and what they don't save is lost. ``MASTER_PORT`` is that of a store in the
script's first process, as ``env://`` makes one; each group has its own, so that nothing is left of the last group's.

The variables are those of https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables. torch is not
imported: a worker says hello within moments, and the pod's memory is the script's.
"""

import functools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adaptrain_api.contracts.coordinator_api import Result
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_api.training.script import Script

from adaptrain.elastic.membership.client import CoordinatorClient, Identity
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.errors import InvalidJob, Refused, ScriptFailed
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.process.lifetime import die_with_parent
from adaptrain.process.result import WORDS_LIMIT
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.shutdown import ShutdownSignal
from adaptrain.rpc import http
from adaptrain.rpc.framing import Frame
from adaptrain.rpc.ports import hold_port, listens_at

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
LAST_CALL_SECONDS = 2.0
"""Who comes so soon after a change of membership spares everybody a second restart: torchrun's last call."""
WORD_SECONDS = 1.0
"""Who is lost is heard of so soon after its loss has ended this worker's script too."""
AGAIN_SECONDS = 0.5
TRAINED_SECONDS = 60.0
"""A script that has run for so long has begun to train, as far as can be told from outside."""
SPARE_SECONDS = 5.0
"""Of a pod's grace, what is left for others than the script."""


def program(script: Script) -> list[str]:
    """A script's command; ``python`` is the one that runs this."""
    first, *arguments = script.command
    return [sys.executable if first == "python" else first, *arguments]


def expanded(command: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """A command in which ``$(NAME)`` stands for a variable's value, as in a container's; others stay as they are."""
    return [re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), part) for part in command]


def resume_arguments(script: Script, checkpoints: Path | None) -> list[str]:
    """``script.resumeArgs`` if there is what the script resumes from: the newest, where several files match.

    All workers see the same storage, so they choose alike.
    """
    if not script.resume_args or checkpoints is None:
        return []
    there = checkpoints.glob(script.resume_file) if script.resume_file is not None else checkpoints.iterdir()
    found: list[tuple[int, Path]] = []
    for one in there:
        with suppress(FileNotFoundError):  # a worker that is about to end may still remove its older ones
            found.append((one.stat().st_mtime_ns, one))
    if not found:
        return []
    _, newest = max(found)
    return expanded(
        script.resume_args, {"ADAPTRAIN_RESUME_FILE": str(newest), "ADAPTRAIN_RESUME_DIR": str(newest.parent)}
    )


class Launcher:
    """Runs the script with whoever else is a member."""

    def __init__(
        self, told: WorkerSettings, job: AdaptiveTrainingJob, command: list[str], farewell: ShutdownSignal
    ) -> None:
        self._told, self._job, self._command = told, job, command
        namespace, name = job.metadata.namespace or "default", job.metadata.name
        if told.metrics_port is not None:
            metrics = WorkerMetrics(namespace, name)
            http.serve(listens_at(told.host), told.metrics_port, metrics.registry, metrics.refusals)
        if told.checkpoints is not None:
            told.checkpoints.mkdir(parents=True, exist_ok=True)
        self._grace = max(1.0, job.spec.workers.termination_grace_period_seconds - SPARE_SECONDS)
        self._held: socket.socket | None = None
        self._starts = 0
        self._end: End | None = None
        self._leaving = False
        identity = Identity(told.id, told.name, told.host, 0)
        self._control = CoordinatorClient(told.coordinator, told.token, identity, SocketAbort())
        threading.Thread(target=self._leave_after, args=(farewell,), daemon=True, name="farewell").start()

    def run(self) -> Result:
        """Launch the script again and again until it has ended on all workers, or this one may leave.

        Raises:
            ScriptFailed: the script ended badly, and nobody else is to blame.
        """
        while True:
            frame = self._control.next()
            match frame["do"]:
                case "plan" | "leave":
                    self._prepare(frame["epoch"])
                case "form":
                    self._take_part(frame)
                case "finish" if self._end is not None and self._end.well:
                    result = Result(outcome="completed", step=0, epoch=0, message="the script has ended on all workers")
                    self._control.say({"is": "done", "result": result.model_dump(by_alias=True)})
                    return result
                case "finish" | "go":
                    return Result(outcome="left", step=0, epoch=0)
                case "fail":
                    assert self._end is not None
                    raise ScriptFailed(self._end.message, self._end.exit_code)
                case "refuse":
                    raise Refused(frame["why"])

    def _leave_after(self, farewell: ShutdownSignal) -> None:
        farewell.wait()
        log.info("asked to end: the script is ended on all workers, and goes on without this one")
        self._leaving = True
        self._control.leave()

    def _prepare(self, epoch: int) -> None:
        """Be ready for an epoch's group, unless another one is opened meanwhile."""
        if not self._leaving and self._control.arrived(LAST_CALL_SECONDS):
            return
        if self._held is not None:
            self._held.close()
        self._held = hold_port(listens_at(self._told.host))
        self._control.ready(epoch, self._held.getsockname()[1])

    def _take_part(self, frame: Frame) -> None:
        """Run the script in an epoch's group until there is another order."""
        rank, size = frame["rank"], len(frame["peers"])
        log.info("starting the script as worker %d of %d", rank, size)
        each = self._job.spec.workers.processes_per_worker
        script = self._job.spec.script
        again = [] if script is None else resume_arguments(script, self._told.checkpoints)
        processes = [
            Process([*self._command, *again], self._environment(rank, size, local, each, frame["host"], frame["port"]))
            for local in range(each)
        ]
        self._starts += 1
        self._end, began = None, time.monotonic()
        try:
            with self._control.group(frame["epoch"], frame["peers"]):
                while not self._control.arrived(POLL_SECONDS) and self._end is None:
                    self._end = end_of(processes)
                    if time.monotonic() - began > TRAINED_SECONDS:
                        self._control.trained = True
                if self._end is not None:
                    self._tell(self._end)
        finally:
            with self._control.doing("section", self._grace + SPARE_SECONDS):
                stop(processes, self._grace)

    def _tell(self, end: "End") -> None:
        """Tell how the script ended, until there is an order."""
        wait = 0.0 if end.well else WORD_SECONDS
        while not self._control.arrived(wait):
            self._control.ended(failed=not end.well)
            wait = AGAIN_SECONDS

    def _environment(self, worker: int, workers: int, local: int, each: int, host: str, port: int) -> dict[str, str]:
        rank, world = str(worker * each + local), str(workers * each)
        return {
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            **os.environ,
            "RANK": rank,
            "LOCAL_RANK": str(local),
            "GROUP_RANK": str(worker),
            "ROLE_RANK": rank,
            "ROLE_NAME": "default",
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": str(each),
            "GROUP_WORLD_SIZE": str(workers),
            "ROLE_WORLD_SIZE": world,
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RESTART_COUNT": str(self._starts),
            "TORCHELASTIC_MAX_RESTARTS": str(self._job.spec.max_restarts),
            "TORCHELASTIC_RUN_ID": self._job.metadata.uid or self._job.metadata.name,
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }


class Process:
    """One of the script's processes, in a session of its own. What it says on stderr is passed on, its end is kept."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.rank = environment["RANK"]
        command = expanded(command, environment)
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        except OSError as error:
            raise InvalidJob(f"script.command: {command[0]!r} can't be run: {error.strerror}") from error
        self._last = b""
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._pass_on, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        return self._process.poll()

    def last_words(self) -> str:
        """The end of what it said on stderr, once it has ended."""
        self._reader.join(timeout=1.0)  # a process that it left behind may hold the pipe
        return self._last.decode(errors="replace").strip()

    def signal(self, number: int) -> None:
        """Signal it and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float | None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _pass_on(self, said: IO[bytes]) -> None:
        while data := os.read(said.fileno(), 65536):
            with suppress(OSError):
                os.write(sys.stderr.fileno(), data)
            self._last = (self._last + data)[-WORDS_LIMIT:]


@dataclass(frozen=True)
class End:
    """How the script ended on this worker: well, or as its first process that failed."""

    exit_code: int = 0
    """As a shell has it: 128 + n for signal n."""
    message: str = ""

    @property
    def well(self) -> bool:
        return self.exit_code == 0


def end_of(processes: list[Process]) -> End | None:
    """None while none has failed and not all have ended."""
    codes = [process.poll() for process in processes]
    for process, code in zip(processes, codes, strict=True):
        if code:
            words, who = process.last_words(), f"the script's rank {process.rank} ended"
            if code > 0:
                return End(code, f"{who} with exit code {code}\n{words}".strip())
            # Its last words are not the reason, and a failure is known by its last line.
            return End(128 - code, f"{words}\n{who} by {signal.Signals(-code).name}".strip())
    return End() if all(code == 0 for code in codes) else None


def stop(processes: list[Process], grace: float) -> None:
    """End what still runs: SIGTERM, and SIGKILL for whoever takes too long, and for what they leave behind."""
    until = time.monotonic() + grace
    for process in processes:
        process.signal(signal.SIGTERM)
    for process in processes:
        process.wait(max(0.0, until - time.monotonic()))
    for process in processes:
        process.signal(signal.SIGKILL)
        process.wait(None)
