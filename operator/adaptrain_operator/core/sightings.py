"""Since when pods are as they are, by the operator's clock.

Their timestamps are of the API server's clock and of their node's. Compared with ours they would tell how far clocks
are apart: a node that is a minute behind would have workers that are late before they have begun. So a state counts
from when we saw it first. An operator that has just started sees all for the first time, and waits anew.
"""

from dataclasses import replace

from adaptrain_operator.core.containers import Exit
from adaptrain_operator.core.observed import Pod


def sighted(pod: Pod, before: Pod | None, now: float) -> Pod:
    """The pod with our own times for its timestamps.

    Args:
        pod: as it was read.
        before: as this function returned it when it was seen last; absent: it is new to us.
        now: Unix time, seconds.
    """
    if before is not None and before.uid != pod.uid:
        before = None
    exit = _exit(pod.exit, before, now)
    created = now if before is None else before.created
    if before is None and exit is not None and exit.started is not None:
        created = exit.started
    return replace(
        pod,
        created=created,
        running_since=_since(pod.running_since, None if before is None else before.running_since, now),
        unprepared_since=_since(pod.unprepared_since, None if before is None else before.unprepared_since, now),
        deleting_until=_until(pod, before, now),
        exit=exit,
    )


def _since(found: float | None, before: float | None, now: float) -> float | None:
    if found is None:
        return None
    return now if before is None else before


def _until(pod: Pod, before: Pod | None, now: float) -> float | None:
    """When its grace ends. A grace that was cut short counts from then."""
    if pod.deleting_until is None:
        return None
    if before is not None and before.deleting_until is not None and before.grace == pod.grace:
        return before.deleting_until
    return now + (pod.grace or 0)


def _exit(exit: Exit | None, before: Pod | None, now: float) -> Exit | None:
    """An end is when it was seen; how long it ran, its node's clock alone tells."""
    if exit is None:
        return None
    if before is not None and before.exit is not None:
        return replace(exit, started=before.exit.started, finished=before.exit.finished)
    ran = 0.0 if exit.started is None or exit.finished is None else max(0.0, exit.finished - exit.started)
    earliest = now - ran if before is None else max(before.created, now - ran)
    return replace(exit, started=earliest, finished=now)
