"""What a worker is told from outside."""

import os
from dataclasses import dataclass
from pathlib import Path

from adaptrain_api.base import ALLOWED
from adaptrain_api.contracts.coordinator_api import WORKER_METRICS_PORT
from adaptrain_api.training.workers import PRIVILEGES

from adaptrain.errors import InvalidJob
from adaptrain.process.environment import path, required

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
