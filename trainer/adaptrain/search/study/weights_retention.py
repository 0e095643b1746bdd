"""Weights that trials left, beside the study: which files may go. No torch here: the coordinator decides it."""

import re
import uuid
from collections.abc import Collection, Container, Iterable
from pathlib import Path

FOLDER = "trials"
_FILE = re.compile(r"\.?([0-9]+)-.+")


def file_name(trial: int, sha256: str) -> str:
    """What a trial's file is called. An evaluator that was taken for lost may leave another one of the same trial."""
    return f"{trial}-{sha256[:16]}.safetensors"


def partial_name(trial: int) -> str:
    """What it is called while it is written: a name that no process uses, on this machine or another."""
    return f".{trial}-{uuid.uuid4().hex}"


def listed(study: Path) -> list[str]:
    """Names of all files, whole or not."""
    try:
        return [path.name for path in (study / FOLDER).iterdir()]
    except FileNotFoundError:
        return []


def stale(names: Iterable[str], ended: Container[int], kept: Collection[str]) -> list[str]:
    """Which of them nobody needs: what trials left that ended, but the paths ``kept``."""
    found = []
    for name in names:
        match = _FILE.fullmatch(name)
        if match is not None and int(match[1]) in ended and f"{FOLDER}/{name}" not in kept:
            found.append(name)
    return found


def remove(study: Path, names: Iterable[str]) -> None:
    """
    Raises:
        OSError: storage refused.
    """
    for name in names:
        (study / FOLDER / name).unlink(missing_ok=True)
