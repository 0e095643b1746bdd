"""What a pod's environment says."""

import os
from pathlib import Path

from adaptrain.errors import InvalidJob


def required(variable: str) -> str:
    """A variable without which nothing works.

    Raises:
        InvalidJob: it is not set.
    """
    if not (value := os.environ.get(variable)):
        raise InvalidJob(f"the environment variable {variable} is not set: the operator sets it in its pods")
    return value


def path(variable: str) -> Path | None:
    """A path, where somebody wants one."""
    return Path(value) if (value := os.environ.get(variable)) else None
