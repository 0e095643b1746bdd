"""Why a pod ended. A disruption is replaced at once and never counted; a worker's own failure is counted.

The line between them decides whether a job survives a night of preemptions, so each class has its own test.
"""

import json
from enum import Enum

from adaptrain_api.progress import EXIT_INVALID, Result
from pydantic import ValidationError

from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Pod


class Ending(Enum):
    COMPLETED = "training is complete"
    DISRUPTED = "it was taken away"
    INVALID = "the manifest can't be run as it is"
    FAILED = "it failed by itself"


SIGNALS_FROM_OUTSIDE = frozenset({128 + 2, 128 + 9, 128 + 15})
"""SIGINT, SIGKILL, SIGTERM: no exception of a worker's own ends that way. An OOM kill is told apart by its reason."""
LOST_WITH_NODE = frozenset({"ContainerStatusUnknown", "Unknown"})
"""What the kubelet and containerd (with exit code 255) say of a container that ended while its node was away."""

NOT_STARTED = "StartError"
"""What the kubelet says of a container that the node's runtime could not start (with exit code 128)."""
OWN_START = ('exec: "', "executable file", "chdir to cwd", "OOM-killed")
"""What runc and crun say when that is for the pod's own command, folder or memory limit. All else is the node's: one
that is busy or about to go can't make every container (https://github.com/containerd/containerd/issues/9160)."""


def ending(pod: Pod) -> Ending:
    """The class of a pod that has ended."""
    result = parse_result(pod)
    exited = pod.exit
    if exited is not None and exited.code == 0 and result is not None:
        return Ending.COMPLETED if result.outcome == "completed" else Ending.DISRUPTED
    if pod.deleting or pod.disrupted:
        return Ending.DISRUPTED
    if exited is None:
        # Nothing ran: evicted, refused by the kubelet, or the node was shut down.
        return Ending.DISRUPTED
    if exited.code == EXIT_INVALID and exited.init_container in (None, naming.SOURCE):
        return Ending.INVALID
    if exited.reason == "OOMKilled":
        return Ending.FAILED
    if exited.reason == NOT_STARTED and not any(words in exited.message for words in OWN_START):
        return Ending.DISRUPTED
    if exited.code in SIGNALS_FROM_OUTSIDE or exited.reason in LOST_WITH_NODE:
        return Ending.DISRUPTED
    return Ending.FAILED


def parse_result(pod: Pod) -> Result | None:
    """What the trainer left in the termination message, if it came that far."""
    if pod.exit is None or not pod.exit.message.lstrip().startswith("{"):
        return None
    try:
        result: Result = Result.model_validate(json.loads(pod.exit.message))
        return result
    except (ValueError, ValidationError):
        return None


def explain(pod: Pod, limit: int = 800) -> str:
    """Why it ended, for a person: the trainer's own words, else the last lines of its log."""
    exited = pod.exit
    if exited is None:
        return pod.message or pod.reason or "it ended before its container started"
    if exited.reason == "OOMKilled":
        return "out of memory: raise workers.resources.limits.memory or lower the batch size"
    result = parse_result(pod)
    words = result.message if result is not None and result.message else exited.message.strip()
    if not words and exited.code == 0:
        words = "it exited with 0 but left no result: a script trains in `with adaptrain.elastic.Elastic(…)`"
    words = words[-limit:]
    whose = "" if exited.init_container is None else f"init container {exited.init_container}: "
    return f"{whose}exit code {exited.code}" + (f": {words}" if words else "")
