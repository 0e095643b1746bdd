"""A worker's connections to everybody else in its job."""

import asyncio
import logging
import os
import secrets
import threading
import time
from pathlib import Path

import torch
from adaptrain_api.contracts.coordinator_api import Result, foremost
from adaptrain_api.training.checkpoints import Checkpoint

from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.collectives.rendezvous import Rendezvous
from adaptrain.elastic.loop import METRICS_SIZE, ElasticLoop, Task
from adaptrain.elastic.membership.arrival import Arrival
from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state.sample_log import SampleLog, trace_directory
from adaptrain.elastic.storage.directory import Directory, Storage, Unavailable
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.threads import forever
from adaptrain.rpc import http
from adaptrain.rpc.ports import listens_at

log = logging.getLogger(__name__)

MEMORY_SECONDS = 5.0
LOCALHOST = "127.0.0.1"


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


class Session:
    """What an elastic worker has beside its task."""

    def __init__(
        self,
        settings: WorkerSettings,
        metrics: WorkerMetrics,
        trace: SampleLog,
        checkpoint: Checkpoint | None,
        arrival: Arrival,
        replica: Replica | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._replica = replica or Replica()
        self.metrics = metrics
        self.trace = trace
        self.control, self._sockets = arrival.control, arrival.sockets
        if arrival.listening is not None:
            Rendezvous(arrival.listening, settings.token, metrics.refusals)
        self._checkpoints: Checkpoints | None = None
        if (storage := _storage(settings)) is not None:
            c = checkpoint
            policy = Policy(c.every_seconds, c.keep, c.keep_best, c.verify) if c is not None else Policy()
            key = settings.checkpoint_key
            self._checkpoints = Checkpoints(storage, policy, self.control, self._replica, origin, key)

    def loop(self, task: Task) -> ElasticLoop:
        """The loop that trains a task."""
        return ElasticLoop(self.control, self._sockets, task, self._checkpoints, self._replica)

    def result(self, loop: ElasticLoop, task: Task) -> Result:
        """What there is to tell once the loop has ended; if training is complete, it is told."""
        c = task.state.counters
        result = Result(
            outcome="completed" if loop.complete else "left",
            step=c.step,
            epoch=c.epoch,
            message=f"stopped after {c.stopped}" if loop.complete else "",
            metrics=foremost({**c.metrics, **{f"best/{k}": v for k, v in c.best.items()}}, METRICS_SIZE),
            model=loop.model,
            model_step=c.best_step if loop.model is not None else None,
        )
        if loop.complete and self._replica.rank == 0:
            frame = {"is": "done", "result": result.model_dump(by_alias=True), **loop.report(), "eta_seconds": 0}
            self.control.say(frame)
            log.info("training is complete: %s, %s", result.message, result.metrics)
        return result


def _storage(settings: WorkerSettings) -> Storage | None:
    if settings.checkpoint_uri is not None:
        from adaptrain.elastic.storage.object_store import ObjectStore  # only where there is one

        try:
            return ObjectStore(settings.checkpoint_uri)
        except Unavailable as error:
            raise InvalidJob(str(error)) from error
    return Directory(settings.checkpoints) if settings.checkpoints is not None else None


def prepare(settings: WorkerSettings, namespace: str, name: str) -> tuple[WorkerMetrics, SampleLog]:
    """What runs before the session, while data and model are loaded."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    metrics = WorkerMetrics(namespace, name)
    if settings.metrics_port is not None:
        http.serve(listens_at(settings.host), settings.metrics_port, metrics.registry, metrics.refusals)
    forever("memory", lambda: _watch_memory(metrics))
    return metrics, SampleLog(trace_directory(settings.trace, settings.checkpoints), settings.name)


def _watch_memory(metrics: WorkerMetrics) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        metrics.memory("cpu", int(Path("/proc/self/statm").read_text().split()[1]) * page)
        if torch.cuda.is_available():
            metrics.memory("cuda", torch.cuda.memory_allocated())
        time.sleep(MEMORY_SECONDS)
