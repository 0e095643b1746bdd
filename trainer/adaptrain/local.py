"""A job's coordinator and workers as processes of this machine: the same programs that run in pods."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from adaptrain_api.progress import Progress, Result
from adaptrain_api.training import AdaptiveTrainingJob, dump


class LocalJob:
    """Starts and ends processes; decides nothing. Use as a context manager: leaving it kills what is left."""

    def __init__(self, job: AdaptiveTrainingJob, checkpoints: Path | None = None, trace: Path | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="adaptrain-")
        self.directory = Path(self._scratch.name)
        self._token = secrets.token_urlsafe(32)
        (self.directory / "token").write_text(self._token)
        (self.directory / "token").chmod(0o600)
        (self.directory / "job.json").write_text(json.dumps(dump(job)))
        self._checkpoints = checkpoints
        self._trace = trace
        self._control_port, self._http_port = _free_ports(2)
        self._number = 0
        self._next = 0
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.workers: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "LocalJob":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers.values(), self.coordinator):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self._scratch.cleanup()

    def start_coordinator(self) -> None:
        """Start the next coordinator; the one before must have ended."""
        self._number += 1
        more = {
            "ADAPTRAIN_COORDINATOR_NUMBER": str(self._number),
            "ADAPTRAIN_CONTROL_PORT": str(self._control_port),
            "ADAPTRAIN_HTTP_PORT": str(self._http_port),
            "ADAPTRAIN_HOST": "127.0.0.1",
        }
        self.coordinator = self._start("coordinator", f"coordinator-{self._number}", more)

    def start_worker(self) -> int:
        """Start one more worker. Returns its number, which is never used twice."""
        number = self._next
        self._next += 1
        more = {
            "ADAPTRAIN_COORDINATOR": f"127.0.0.1:{self._control_port}",
            "ADAPTRAIN_WORKER_ID": str(number),
            "ADAPTRAIN_WORKER_NAME": f"worker-{number}",
            "ADAPTRAIN_ADDRESS": "127.0.0.1",
            "ADAPTRAIN_METRICS_PORT": "0",
            "ADAPTRAIN_TERMINATION_LOG": str(self.directory / f"worker-{number}.end"),
            # Spinning threads would take the cores that the other workers of this machine need.
            "OMP_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": "0",
            "KMP_BLOCKTIME": "0",
        }
        if self._checkpoints is not None:
            more["ADAPTRAIN_CHECKPOINT_DIR"] = str(self._checkpoints)
        if self._trace is not None:
            more["ADAPTRAIN_TRACE_DIR"] = str(self._trace)
        self.workers[number] = self._start("worker", f"worker-{number}", more)
        return number

    def signal(self, worker: int, what: signal.Signals) -> None:
        self.workers[worker].send_signal(what)

    def alive(self) -> list[int]:
        """Numbers of the workers whose processes run."""
        return [n for n, process in self.workers.items() if process.poll() is None]

    def result(self, worker: int) -> Result | None:
        """What an ended worker left behind; None if it was killed."""
        try:
            return Result.model_validate_json((self.directory / f"worker-{worker}.end").read_text())
        except FileNotFoundError:
            return None

    def progress(self) -> Progress | None:
        """What the coordinator says; None while it can't be reached."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._http_port}/progress", headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                return Progress.model_validate_json(answer.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def log(self, name: str) -> str:
        """What a process (``worker-3``, ``coordinator-1``) wrote."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _start(self, command: str, name: str, more: dict[str, str]) -> subprocess.Popen[bytes]:
        environment = os.environ | more
        environment |= {
            "ADAPTRAIN_PARENT": str(os.getpid()),
            "ADAPTRAIN_JOB_FILE": str(self.directory / "job.json"),
            "ADAPTRAIN_TOKEN_FILE": str(self.directory / "token"),
        }
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "adaptrain.cli", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the runner, which asks the workers to leave.
                start_new_session=True,
            )


def _free_ports(count: int) -> list[int]:
    open_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in open_sockets]
    for s in open_sockets:
        s.close()
    return ports
