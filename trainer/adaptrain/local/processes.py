"""A job's coordinator and workers as processes of this machine: the same programs that run in pods."""

import functools
import json
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import uuid
from http.client import HTTPException
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnProcess
from pathlib import Path

from adaptrain_api.contracts.coordinator_api import Progress, Result
from adaptrain_api.contracts.proof import Caller
from adaptrain_api.training.checkpoints import checkpoint_uri
from adaptrain_api.training.job import AdaptiveTrainingJob, dump

from adaptrain.launch.torchrun import expanded
from adaptrain.rpc.client import ask
from adaptrain.rpc.ports import hold_port

FILES = {"ADAPTRAIN_JOB_FILE": "job.json", "ADAPTRAIN_TOKEN_FILE": "token"}
PRELOADED = ["adaptrain.launch.worker", "adaptrain.launch.train", "adaptrain.search.evaluation.training_trial"]
"""What workers find imported. A program that starts many of them adds what it imports itself: multiprocessing lets
each import the program's main module again."""
# Spinning threads would take the cores that the other workers of this machine need.
THREADS = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

LOGGED = {"PYTHONUNBUFFERED": "1"}
"""As in the trainer image: what a script prints is in its log at once, and not lost if it is killed."""


class LocalJob:
    """Starts and ends processes; decides nothing. Use as a context manager: leaving it kills what is left.

    Args:
        fork: workers begin with all imports, as forks of one process; else each begins anew, as in a pod.
        logs: a folder for what the processes write; None: they are gone with this object.
    """

    def __init__(
        self,
        job: AdaptiveTrainingJob,
        checkpoints: Path | None = None,
        trace: Path | None = None,
        source: Path | None = None,
        fork: bool = True,
        logs: Path | None = None,
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="adaptrain-")
        self.directory = Path(self._scratch.name)
        self._token = secrets.token_urlsafe(32)
        (self.directory / "token").write_text(self._token)
        (self.directory / "token").chmod(0o600)
        # Each run is a job of its own, as if it had been applied anew.
        metadata = job.metadata.model_copy(update={"uid": str(uuid.uuid4())})
        (self.directory / "job.json").write_text(json.dumps(dump(job.model_copy(update={"metadata": metadata}))))
        self.logs = logs or self.directory
        self.logs.mkdir(parents=True, exist_ok=True)
        self._env = job.spec.workers.env
        self._checkpoints = checkpoints
        self.checkpoint_uri = checkpoint_uri(job.spec.checkpoint, job.metadata.namespace, job.metadata.name)
        """Where checkpoints are if not in a directory."""
        self._trace = trace
        self._source = source
        # The optimizers of one-shot searches are torch's own, whose first step imports torch._dynamo.
        self._context = (
            forkserver_context(*(["torch._dynamo"] if job.spec.search else []))
            if fork
            else multiprocessing.get_context("spawn")
        )
        self._held = [hold_port("127.0.0.1") for _ in range(2)]
        self._control_port, self._http_port = (int(held.getsockname()[1]) for held in self._held)
        self._caller = Caller(self._token)
        self._number = 0
        self._next = 0
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.workers: dict[int, ForkServerProcess | SpawnProcess] = {}

    def __enter__(self) -> "LocalJob":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.join()
        if self.coordinator is not None:
            self.coordinator.kill()
            self.coordinator.wait()
        for held in self._held:
            held.close()
        self._scratch.cleanup()

    def start_coordinator(self) -> None:
        """Start the next coordinator; the one before must have ended."""
        self._number += 1
        more = {
            "ADAPTRAIN_COORDINATOR_NUMBER": str(self._number),
            "ADAPTRAIN_CONTROL_PORT": str(self._control_port),
            "ADAPTRAIN_HTTP_PORT": str(self._http_port),
            "ADAPTRAIN_HOST": "127.0.0.1",
            "ADAPTRAIN_PARENT": str(os.getpid()),
        }
        if self._checkpoints is not None:
            more["ADAPTRAIN_STORAGE_DIR"] = str(self._checkpoints)
        with (self.logs / f"coordinator-{self._number}.log").open("wb") as log:
            self.coordinator = subprocess.Popen(
                [sys.executable, "-m", "adaptrain.launch.coordinator"],
                env=self._environment(more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the runner, which asks the workers to leave.
                start_new_session=True,
            )

    def start_worker(self, **environment: str) -> int:
        """Start one more worker, with more in its environment. Returns its number, which is never used twice."""
        number = self._next
        self._next += 1
        more = {
            "ADAPTRAIN_COORDINATOR": f"127.0.0.1:{self._control_port}",
            "ADAPTRAIN_WORKER_ID": str(number),
            "ADAPTRAIN_WORKER_NAME": f"worker-{number}",
            "ADAPTRAIN_ADDRESS": "127.0.0.1",
            "ADAPTRAIN_METRICS_PORT": "0",
            "ADAPTRAIN_TERMINATION_LOG": str(self.directory / f"worker-{number}.end"),
            "ADAPTRAIN_WEIGHTS_DIR": str(Path.cwd()),
        }
        if self.checkpoint_uri is not None:
            more["ADAPTRAIN_CHECKPOINT_URI"] = self.checkpoint_uri
        elif self._checkpoints is not None:
            more["ADAPTRAIN_CHECKPOINT_DIR"] = str(self._checkpoints)
        if self._trace is not None:
            more["ADAPTRAIN_TRACE_DIR"] = str(self._trace)
        if self._source is not None:
            more["ADAPTRAIN_SOURCE_DIR"] = str(self._source)
        arguments = (self._environment(self.given | more | environment), self.logs / f"worker-{number}.log")
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        self.workers[number] = process
        return number

    def signal(self, worker: int, what: signal.Signals) -> None:
        """Send a signal to a worker, if it still runs."""
        process = self.workers[worker]
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, what)

    def alive(self) -> list[int]:
        """Numbers of the workers whose processes run."""
        return [n for n, process in self.workers.items() if process.exitcode is None]

    def result(self, worker: int) -> Result | None:
        """What an ended worker left behind; None if it was killed."""
        try:
            return Result.model_validate_json((self.directory / f"worker-{worker}.end").read_text())
        except FileNotFoundError:
            return None

    def progress(self) -> Progress | None:
        """What the coordinator says; None while it can't be reached."""
        try:
            return Progress.model_validate_json(ask(("127.0.0.1", self._http_port), self._caller, "/progress"))
        except (OSError, HTTPException):
            return None

    @property
    def control_address(self) -> tuple[str, int]:
        """Of the coordinator, for its workers."""
        return "127.0.0.1", self._control_port

    @property
    def http_address(self) -> str:
        """Of the coordinator, for metrics and progress."""
        return f"http://127.0.0.1:{self._http_port}"

    def log(self, name: str) -> str:
        """What a process (``worker-3``, ``coordinator-1``) wrote."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def given(self) -> dict[str, str]:
        """The values that ``workers.env`` gives, as in a pod: one may name another one, or a variable of this process.

        What comes from the cluster (``valueFrom``) is left to this process's own environment.
        """
        given: dict[str, str] = {}
        for variable in self._env:
            if variable.value_from is None:
                [given[variable.name]] = expanded([variable.value or ""], os.environ | given)
        return given

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        files = {name: str(self.directory / file) for name, file in FILES.items()}
        return os.environ | THREADS | LOGGED | files | more


def _work(environment: dict[str, str], log: Path) -> None:
    """What a worker's process does, once it is forked from one that has torch loaded."""
    from adaptrain.launch.worker import main as work
    from adaptrain.process.lifetime import configure_logging, die_with_parent

    die_with_parent(os.getppid())
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    configure_logging()
    work()


@functools.cache
def forkserver_context(*more: str) -> ForkServerContext:
    """Workers are forked from a process that has imported everything: seconds less for each that joins."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *more])
    os.environ.update(THREADS)  # read when torch is loaded
    return context
