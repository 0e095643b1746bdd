"""A worker's process, whatever it runs: what it is told from outside, how it is asked to leave, and how it ends."""

import json
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from adaptrain_api.base import ALLOWED
from adaptrain_api.pods import PRIVILEGES
from adaptrain_api.progress import WORKER_METRICS_PORT, Result, foremost

from adaptrain.environment import path, required
from adaptrain.errors import InvalidJob

# No torch here: a launcher of somebody's script does without.

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1536
"""Bytes of a termination message. Kubernetes keeps 4096, but no more than 12 KiB divided by the pod's containers, and
eight may be in a pod that others inject theirs into."""
WORDS_LIMIT = 1024
"""Bytes of it that are a person's to read."""


SHORTEST_KEY = 16
"""Bytes."""


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
    checkpoint_key: bytes | None = None
    """What seals the checkpoints' manifests."""
    trace: Path | None = None
    weights: Path | None = None
    """Where ``initialWeights.path`` begins."""


def settings() -> WorkerSettings:
    """What this process's environment says.

    Raises:
        InvalidJob: a variable is missing.
    """
    ALLOWED.update(PRIVILEGES)  # what the job may have, the operator has decided
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
        checkpoint_key=_key(path("ADAPTRAIN_CHECKPOINT_KEY_FILE")),
        trace=path("ADAPTRAIN_TRACE_DIR"),
        weights=path("ADAPTRAIN_WEIGHTS_DIR"),
    )


def _key(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise InvalidJob(f"checkpoint.key: {file} can't be read: {error.strerror}") from error
    if len(key) < SHORTEST_KEY:
        raise InvalidJob(
            f"checkpoint.key has {len(key)} bytes and needs at least {SHORTEST_KEY}: make one with openssl rand -hex 32"
        )
    return key


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

    def fileno(self) -> int:
        """Readable when something was heard: for who waits for other things as well, and then calls ``wait``."""
        return self._heard.fileno()

    @staticmethod
    def _forget() -> None:
        """A child of a user's script ends when it is told to."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_behind(settings: WorkerSettings, result: Result) -> None:
    """Leave the result where Kubernetes looks for it."""
    if settings.termination_log is not None:
        try:
            settings.termination_log.write_bytes(shortened(result))
        except OSError as error:  # what the coordinator heard still counts
            log.error("%s can't be written: %s", settings.termination_log, error)


def shortened(result: Result) -> bytes:
    """The result as JSON of at most ``MESSAGE_LIMIT`` bytes: the end of its message, and the foremost metrics."""
    kept = result.model_copy(update={"message": ending(result.message, WORDS_LIMIT), "metrics": {}})
    left = MESSAGE_LIMIT - len(_json(kept))
    return _json(kept.model_copy(update={"metrics": foremost(result.metrics, left)}))


def ending(words: str, limit: int) -> str:
    """The end of what was said, of at most so many bytes as JSON."""
    while (size := len(json.dumps(words))) > limit:
        words = words[max(1, len(words) - len(words) * limit // size) :]
    return words


def _json(result: Result) -> bytes:
    # ASCII only: what is no valid text, as of a file name, must not keep a result from being read.
    return json.dumps(result.model_dump(by_alias=True)).encode()


def end(settings: WorkerSettings, code: int, result: Result) -> NoReturn:
    """Leave the result behind and end at once: destructors of groups and stores would wait for who may be gone."""
    leave_behind(settings, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def failed(message: str) -> Result:
    """The result of a worker that ends with an error."""
    return Result(outcome="failed", step=0, epoch=0, message=ending(message, WORDS_LIMIT))
