"""The targets by name."""

import random
from collections.abc import Callable

from tests.faults.hostile import listeners, parsers
from tests.faults.hostile.outcome import Outcome

TARGETS: dict[str, Callable[[float, random.Random], Outcome]] = {
    "control": listeners.control,
    "http": listeners.http,
    "rendezvous": listeners.rendezvous,
    "progress": parsers.progress,
    "objects": parsers.objects,
    "checkpoints": parsers.checkpoints,
    "specs": parsers.specs,
}
