"""A worker: one replica of the model, training with whoever else is a member."""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from adaptrain_api.progress import EXIT_INVALID, Result
from torch.distributed import TCPStore

from adaptrain.data import load_data
from adaptrain.elastic import http
from adaptrain.elastic.checkpoint import Checkpoints
from adaptrain.elastic.control import Control, Identity
from adaptrain.elastic.loop import ElasticLoop, Refused
from adaptrain.elastic.sockets import GroupSockets
from adaptrain.elastic.trace import Trace, trace_directory
from adaptrain.errors import InvalidJob
from adaptrain.manifest import read_job
from adaptrain.metrics import WorkerMetrics
from adaptrain.models import build_model
from adaptrain.phases.supervised import SupervisedTask

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message."""
MEMORY_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told from outside (environment variables of its pod)."""

    job: Path
    token: Path
    coordinator: str
    """host:port"""
    id: str
    name: str
    host: str
    """Where other workers reach this one."""
    metrics_port: int
    termination_log: Path | None
    checkpoints: Path | None
    trace: Path | None


def main(settings: WorkerSettings) -> None:
    """Work until the job is done or this worker is asked to leave; never returns."""
    # SIGTERM is waited for by a thread: the training thread may sit in a collective, where no handler would run.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        result = _work(settings)
    except InvalidJob as error:
        log.error("%s", error)
        _end(settings, EXIT_INVALID, Result(outcome="failed", step=0, epoch=0, message=str(error)))
    except Exception as error:
        traceback.print_exc()
        last = traceback.format_exc()[-MESSAGE_LIMIT // 2 :] if not isinstance(error, Refused) else str(error)
        _end(settings, 1, Result(outcome="failed", step=0, epoch=0, message=last))
    else:
        _end(settings, 0, result)


def _work(settings: WorkerSettings) -> Result:
    job = read_job(settings.job)
    spec, name, namespace = job.spec, job.metadata.name, job.metadata.namespace or "default"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    metrics = WorkerMetrics(namespace, name)
    http.serve("", settings.metrics_port, metrics.registry)
    threading.Thread(target=_watch_memory, args=(metrics,), daemon=True, name="memory").start()

    data = load_data(spec.data)
    phase = spec.phases[0]
    trace = Trace(trace_directory(settings.trace, settings.checkpoints), settings.name)
    task = SupervisedTask(phase, lambda: build_model(spec.model, data), data, spec.seed, metrics, trace)
    store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
    sockets = GroupSockets()
    # Only a warm worker says hello: the others never wait for an import.
    identity = Identity(settings.id, settings.name, settings.host, store.port)
    control = Control(settings.coordinator, settings.token.read_text().strip(), identity, sockets)
    threading.Thread(target=_await_sigterm, args=(control,), daemon=True, name="sigterm").start()
    checkpoints = None
    if settings.checkpoints is not None:
        every, keep = (spec.checkpoint.every_seconds, spec.checkpoint.keep) if spec.checkpoint else (60, 3)
        checkpoints = Checkpoints(settings.checkpoints, every, keep, control)

    loop = ElasticLoop(control, sockets, task, checkpoints)
    complete = loop.run()
    c = task.state.counters
    result = Result(
        outcome="completed" if complete else "left",
        step=c.step,
        epoch=c.epoch,
        message=f"stopped after {c.stopped}" if complete else "",
        metrics={**c.metrics, **{f"best/{k}": v for k, v in c.best.items()}},
        model=loop.model,
    )
    if complete:
        frame = {"is": "done", "result": result.model_dump(by_alias=True), **loop.report(), "eta_seconds": 0}
        control.say(frame)
        log.info("training is complete: %s, %s", result.message, result.metrics)
    return result


def _await_sigterm(control: Control) -> None:
    signal.sigwait({signal.SIGTERM})
    log.info("asked to end: leaving at the step's end")
    control.leave()


def _watch_memory(metrics: WorkerMetrics) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        metrics.memory("cpu", int(Path("/proc/self/statm").read_text().split()[1]) * page)
        if torch.cuda.is_available():
            metrics.memory("cuda", torch.cuda.memory_allocated())
        time.sleep(MEMORY_SECONDS)


def _end(settings: WorkerSettings, code: int, result: Result) -> None:
    """Leave the result where Kubernetes looks for it, and end at once.

    Destructors of groups and stores would wait for peers that may be gone.
    """
    if settings.termination_log is not None:
        shortened = result.model_copy(update={"message": result.message[-MESSAGE_LIMIT // 2 :]})
        settings.termination_log.write_text(json.dumps(shortened.model_dump(by_alias=True)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
