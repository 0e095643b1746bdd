"""How a worker's process ends, and what it leaves behind of it."""

import json
import logging
import os
import sys
from typing import NoReturn

from adaptrain_api.contracts.coordinator_api import Result, foremost

from adaptrain.process.settings import WorkerSettings

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1536
"""Bytes of a termination message. Kubernetes keeps 4096, but no more than 12 KiB divided by the pod's containers, and
eight may be in a pod that others inject theirs into."""
WORDS_LIMIT = 1024
"""Bytes of it that are a person's to read."""


def write_result(settings: WorkerSettings, result: Result) -> None:
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


def exit_with(settings: WorkerSettings, code: int, result: Result) -> NoReturn:
    """Leave the result behind and end at once: destructors of groups and stores would wait for who may be gone."""
    write_result(settings, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def failed_result(message: str) -> Result:
    """The result of a worker that ends with an error."""
    return Result(outcome="failed", step=0, epoch=0, message=ending(message, WORDS_LIMIT))
