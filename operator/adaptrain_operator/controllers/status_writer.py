"""What of a status is written when: numbers seldom, what keeps others from mistakes at once."""

from typing import Any

Object = dict[str, Any]

FAST = frozenset({"step", "epoch", "loss", "metric", "eta", "etaSeconds", "goodput", "goodputRatio", "skippedSteps"})
"""Status fields that change all the time while a job trains."""
STATUS_PER_SECOND, STATUS_AT_ONCE = 0.5, 20
"""Writes of one job's status in the long run, and at once: what its coordinator says may change all the time."""
PROGRESS_EVERY, MANY_JOBS = 3.0, 100
LARGE = 64 * 1024
"""Bytes of a spec from which on a job's progress is written less often."""
RESERVES = frozenset({"nextWorker", "coordinator"})
"""Status fields that keep a number from being used twice."""
URGENT = RESERVES | {"restarts", "failedWorkers", "completionTime"}


def without_empty(status: Object) -> Object:
    """The API server fills in empty lists, so absent and empty must mean the same."""
    return {name: value for name, value in status.items() if value not in ([], {}, None)}


def progress_every(jobs: int, size: int = 0) -> float:
    """Seconds from one status write to the next of a job of which only its progress is new.

    A hundred jobs take 33 writes a second. More jobs have more of all else that the API server has to do, so they take
    fewer together: a thousand 17.

    Args:
        jobs: how many train.
        size: bytes of the job's spec. With each write all of it goes to and fro.
    """
    return PROGRESS_EVERY * float(max(1.0, jobs / MANY_JOBS) ** 1.3) * max(1.0, size / LARGE)


def only_fast(change: Object, before: Object) -> bool:
    """Whether nothing is new but numbers that change all the time, and sentences that contain them."""
    if not change.keys() - FAST:
        return True
    if change.keys() - FAST - {"conditions"}:
        return False
    return _truths(change["conditions"]) == _truths(before.get("conditions"))


def _truths(conditions: list[Object] | None) -> list[tuple[Any, ...]]:
    return [(one["type"], one["status"], one["reason"], one.get("observedGeneration")) for one in conditions or []]
