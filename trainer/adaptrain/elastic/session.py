"""A worker's place in its job: what its environment says, and its connections to everybody else."""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from adaptrain_api.progress import WORKER_METRICS_PORT, Result
from adaptrain_api.training import Checkpoint
from torch.distributed import TCPStore

from adaptrain.elastic import http
from adaptrain.elastic.checkpoint import Checkpoints, Policy
from adaptrain.elastic.control import Identity
from adaptrain.elastic.coordinator import Coordinator
from adaptrain.elastic.loop import ElasticLoop, Task
from adaptrain.elastic.mates import Mates
from adaptrain.elastic.sockets import GroupSockets
from adaptrain.elastic.storage import Directory, Storage, Unavailable
from adaptrain.elastic.trace import Trace, trace_directory
from adaptrain.environment import path, required
from adaptrain.errors import InvalidJob
from adaptrain.metrics import WorkerMetrics

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message."""
MEMORY_SECONDS = 5.0
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told from outside (environment variables of its pod)."""

    job: Path | None
    """Its manifest; None: a script that runs by itself."""
    token: str
    coordinator: str
    """host:port"""
    id: str
    name: str
    host: str
    """Where other workers reach this one."""
    metrics_port: int | None
    """None: it serves none."""
    termination_log: Path | None = None
    checkpoints: Path | None = None
    checkpoint_uri: str | None = None
    """Where checkpoints are if not in a directory."""
    trace: Path | None = None


def settings() -> WorkerSettings:
    """What this process's environment says.

    Raises:
        InvalidJob: a variable is missing.
    """
    return WorkerSettings(
        job=Path(required("ADAPTRAIN_JOB_FILE")),
        token=Path(required("ADAPTRAIN_TOKEN_FILE")).read_text().strip(),
        coordinator=required("ADAPTRAIN_COORDINATOR"),
        id=required("ADAPTRAIN_WORKER_ID"),
        name=required("ADAPTRAIN_WORKER_NAME"),
        host=required("ADAPTRAIN_ADDRESS"),
        metrics_port=int(os.environ.get("ADAPTRAIN_METRICS_PORT", WORKER_METRICS_PORT)),
        termination_log=path("ADAPTRAIN_TERMINATION_LOG"),
        checkpoints=path("ADAPTRAIN_CHECKPOINT_DIR"),
        checkpoint_uri=os.environ.get("ADAPTRAIN_CHECKPOINT_URI"),
        trace=path("ADAPTRAIN_TRACE_DIR"),
    )


def alone() -> WorkerSettings:
    """For a script that nobody started as a worker: the only one, with a coordinator in a thread of its own process."""
    token = secrets.token_urlsafe(32)
    opened = threading.Event()
    ports: list[int] = []

    def announce(control: int, web: int) -> None:
        ports.append(control)
        opened.set()

    coordinator = Coordinator(1, token, 1, "default", "script")
    target = coordinator.run(LOCALHOST, 0, 0, announce)
    threading.Thread(target=asyncio.run, args=(target,), daemon=True, name="coordinator").start()
    opened.wait()
    return WorkerSettings(None, token, f"{LOCALHOST}:{ports[0]}", "0", "worker-0", LOCALHOST, metrics_port=0)


class Farewell:
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

    @staticmethod
    def _forget() -> None:
        """A child of a user's script ends when it is told to."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Session:
    """What an elastic worker has beside its task."""

    def __init__(
        self,
        settings: WorkerSettings,
        metrics: WorkerMetrics,
        trace: Trace,
        checkpoint: Checkpoint | None,
        farewell: Farewell | None,
        mates: Mates | None = None,
    ) -> None:
        self._mates = mates or Mates()
        self._settings = settings
        self.metrics = metrics
        self.trace = trace
        # Not of a follower: where a worker's lead meets others, all of its processes do.
        self._store = None
        if self._mates.rank == 0:
            self._store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
        self._sockets = GroupSockets()
        port = self._store.port if self._store is not None else 0
        identity = Identity(settings.id, settings.name, settings.host, port)
        self.control = self._mates.control(settings.coordinator, settings.token, identity, self._sockets)
        if farewell is not None:
            threading.Thread(target=self._leave_after, args=(farewell,), daemon=True, name="farewell").start()
        self._checkpoints: Checkpoints | None = None
        if (storage := _storage(settings)) is not None:
            c = checkpoint
            policy = Policy(c.every_seconds, c.keep, c.keep_best, c.verify) if c is not None else Policy()
            self._checkpoints = self._mates.checkpoints(storage, policy, self.control)

    def loop(self, task: Task) -> ElasticLoop:
        """The loop that trains a task."""
        return ElasticLoop(self.control, self._sockets, task, self._checkpoints, self._mates)

    def result(self, loop: ElasticLoop, task: Task) -> Result:
        """What there is to tell once the loop has ended; if training is complete, it is told."""
        c = task.state.counters
        result = Result(
            outcome="completed" if loop.complete else "left",
            step=c.step,
            epoch=c.epoch,
            message=f"stopped after {c.stopped}" if loop.complete else "",
            metrics={**c.metrics, **{f"best/{k}": v for k, v in c.best.items()}},
            model=loop.model,
        )
        if loop.complete and self._mates.rank == 0:
            frame = {"is": "done", "result": result.model_dump(by_alias=True), **loop.report(), "eta_seconds": 0}
            self.control.say(frame)
            log.info("training is complete: %s, %s", result.message, result.metrics)
        return result

    def _leave_after(self, farewell: Farewell) -> None:
        farewell.wait()
        log.info("asked to end: leaving at the step's end")
        self.control.leave()


def _storage(settings: WorkerSettings) -> Storage | None:
    if settings.checkpoint_uri is not None:
        from adaptrain.elastic.objects import Bucket  # only where there is one

        try:
            return Bucket(settings.checkpoint_uri)
        except Unavailable as error:
            raise InvalidJob(str(error)) from error
    return Directory(settings.checkpoints) if settings.checkpoints is not None else None


def prepare(settings: WorkerSettings, namespace: str, name: str) -> tuple[WorkerMetrics, Trace]:
    """What runs before the session, while data and model are loaded."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    metrics = WorkerMetrics(namespace, name)
    if settings.metrics_port is not None:
        http.serve("", settings.metrics_port, metrics.registry)
    threading.Thread(target=_watch_memory, args=(metrics,), daemon=True, name="memory").start()
    return metrics, Trace(trace_directory(settings.trace, settings.checkpoints), settings.name)


def leave_behind(settings: WorkerSettings, result: Result) -> None:
    """Leave the result where Kubernetes looks for it."""
    if settings.termination_log is not None:
        shortened = result.model_copy(update={"message": result.message[-MESSAGE_LIMIT // 2 :]})
        settings.termination_log.write_text(json.dumps(shortened.model_dump(by_alias=True)))


def end(settings: WorkerSettings, code: int, result: Result) -> NoReturn:
    """Leave the result behind and end at once: destructors of groups and stores would wait for who may be gone."""
    leave_behind(settings, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def failed(message: str) -> Result:
    """The result of a worker that ends with an error."""
    return Result(outcome="failed", step=0, epoch=0, message=message)


def _watch_memory(metrics: WorkerMetrics) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        metrics.memory("cpu", int(Path("/proc/self/statm").read_text().split()[1]) * page)
        if torch.cuda.is_available():
            metrics.memory("cuda", torch.cuda.memory_allocated())
        time.sleep(MEMORY_SECONDS)
