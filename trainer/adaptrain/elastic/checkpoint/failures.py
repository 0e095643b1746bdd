"""What keeps one process of a worker from reading or writing a checkpoint keeps all of them: they tell each other."""

from collections.abc import Iterable
from typing import Any

from adaptrain.elastic.checkpoint.file_format import Corrupt, Mismatch
from adaptrain.elastic.storage.directory import Unavailable
from adaptrain.elastic.storage.lineage import Held, Superseded


class Foreign(Exception):
    """A checkpoint is of another training."""


TOLD = (OSError, Unavailable, Superseded, Held, Foreign, Corrupt, Mismatch)
"""What is told by name; anything else is an OSError for the others."""


def told(error: Exception | None) -> dict[str, Any]:
    """An error in JSON; empty: none."""
    return {} if error is None else {"error": type(error).__name__, "message": str(error)}


def raise_first(heard: Iterable[dict[str, Any]], own: Exception | None) -> None:
    """Raise the first error that a process told, as it is if it is this process's own."""
    first = next((one for one in heard if "error" in one), None)
    if first is None:
        return
    if own is not None and told(own).items() <= first.items():
        raise own
    kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in TOLD}
    raise kinds.get(first["error"], OSError)(first["message"])
