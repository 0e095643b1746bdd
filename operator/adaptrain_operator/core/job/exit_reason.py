"""Why a pod ended. A disruption is replaced at once and never counted; a worker's own failure is counted.

The line between them decides whether a job survives a night of preemptions, so every way in which a pod of ours can end
is a row of ``ROWS``, with a test of its own. docs/design/failures.md shows them, as ``table`` prints them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from adaptrain_api.contracts.coordinator_api import EXIT_INVALID, Result
from adaptrain_api.training.failures import PodFailurePolicy
from pydantic import ValidationError

from adaptrain_operator.core import naming
from adaptrain_operator.core.containers import Exit
from adaptrain_operator.core.observed import Pod


class ExitClass(Enum):
    COMPLETED = "training is complete"
    DISRUPTED = "it was taken away"
    INVALID = "the manifest can't be run as it is"
    FATAL = "a rule of podFailurePolicy says so"
    FAILED = "it failed by itself"


BAD = (ExitClass.FAILED, ExitClass.INVALID, ExitClass.FATAL)

SIGNALS = frozenset({128 + 2, 128 + 9, 128 + 15})
"""SIGINT, SIGKILL, SIGTERM: no exception of a worker's own ends that way. An OOM kill is told apart by its reason."""
LOST_WITH_NODE = frozenset({"ContainerStatusUnknown", "Unknown"})
"""What the kubelet and containerd (with exit code 255) say of a container that ended while its node was away."""
NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
"""What the kubelet says of a container that the node's runtime could not start (with exit code 128)."""
OWN_START = ('exec: "', "executable file", "chdir to cwd", "OOM-killed")
"""What runc and crun say when that is for the pod's own command, folder or memory limit. All else is the node's: one
that is busy or about to go can't make every container (https://github.com/containerd/containerd/issues/9160)."""
OWN_LIMITS = ("ephemeral local storage usage exceeds", "local ephemeral storage limit", "Usage of EmptyDir volume")
"""What the kubelet says when it evicts a pod that has passed a limit of its own, however empty its node is
(https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/eviction/eviction_manager.go)."""
SHUTDOWN = ("Terminated", "NodeShutdown", "Shutdown")


@dataclass(frozen=True, slots=True)
class Ended:
    """What is known of a pod that has ended."""

    pod: Pod
    exit: Exit
    """Of code 0 and without words if nothing ran."""
    result: Result | None

    @property
    def ran(self) -> bool:
        return self.pod.exit is not None

    @property
    def outcome(self) -> str:
        return "" if self.result is None else self.result.outcome


@dataclass(frozen=True, slots=True)
class Row:
    """One way in which a pod can end. The first row that matches is its."""

    how: str
    """As its status shows it."""
    who: str
    """Who ended it."""
    ending: ExitClass
    matches: Callable[[Ended], bool]
    by_itself: bool = False
    """It may have ended by itself, so that ``podFailurePolicy`` is asked."""


def _target(reason: str) -> Callable[[Ended], bool]:
    return lambda ended: ended.pod.disrupted == reason


def _reason(*reasons: str) -> Callable[[Ended], bool]:
    return lambda ended: ended.pod.reason in reasons


ROWS = (
    Row(
        "exit code 0, result `completed` (or lost with its node after it)",
        "the trainer: training is complete",
        ExitClass.COMPLETED,
        lambda e: e.outcome == "completed" and e.ran and (e.exit.code == 0 or e.exit.reason in LOST_WITH_NODE),
    ),
    Row(
        "reason `Evicted`, a message of its own limits (ephemeral storage, `emptyDir.sizeLimit`)",
        "the kubelet, since the pod passed a limit of its own, even if it then left in order",
        ExitClass.FAILED,
        lambda e: e.pod.reason == "Evicted" and any(words in e.pod.message for words in OWN_LIMITS),
    ),
    Row(
        "exit code 0, result `left`",
        "the trainer, which was asked to leave: a smaller `replicas`, `suspend`, a drain",
        ExitClass.DISRUPTED,
        lambda e: e.outcome == "left" and e.exit.code == 0,
    ),
    Row(
        "`metadata.deletionTimestamp`",
        "the operator, a user, a drain or an autoscaler, which deleted it",
        ExitClass.DISRUPTED,
        lambda e: e.pod.deleting,
    ),
    Row(
        "DisruptionTarget `PreemptionByScheduler`",
        "the scheduler, for a pod of a higher priority",
        ExitClass.DISRUPTED,
        _target("PreemptionByScheduler"),
    ),
    Row(
        "DisruptionTarget `DeletionByTaintManager`",
        "the node's NoExecute taint",
        ExitClass.DISRUPTED,
        _target("DeletionByTaintManager"),
    ),
    Row(
        "DisruptionTarget `EvictionByEvictionAPI`",
        "a drain or an autoscaler, which evicted it",
        ExitClass.DISRUPTED,
        _target("EvictionByEvictionAPI"),
    ),
    Row(
        "DisruptionTarget `DeletionByPodGC`",
        "the pod garbage collector: its node is gone",
        ExitClass.DISRUPTED,
        _target("DeletionByPodGC"),
    ),
    Row(
        "DisruptionTarget `TerminationByKubelet`",
        "the kubelet: pressure, a critical pod, or the node's shutdown",
        ExitClass.DISRUPTED,
        _target("TerminationByKubelet"),
    ),
    Row(
        "DisruptionTarget of another reason",
        "a controller, which says so",
        ExitClass.DISRUPTED,
        lambda e: e.pod.disrupted is not None,
    ),
    Row("reason `Evicted`", "the kubelet: pressure on its node", ExitClass.DISRUPTED, _reason("Evicted")),
    Row("reason `Preempting`", "the kubelet, for a critical pod", ExitClass.DISRUPTED, _reason("Preempting")),
    Row(
        f"reason {', '.join(f'`{one}`' for one in SHUTDOWN)}",
        "the kubelet: its node shuts down",
        ExitClass.DISRUPTED,
        _reason(*SHUTDOWN),
    ),
    Row("reason `NodeLost`", "the node controller", ExitClass.DISRUPTED, _reason("NodeLost")),
    Row(
        "reason `DeadlineExceeded`",
        "the kubelet: a policy of the cluster gave the pod `activeDeadlineSeconds`, we give none",
        ExitClass.DISRUPTED,
        _reason("DeadlineExceeded"),
    ),
    Row(
        "no container of it ran: `UnexpectedAdmissionError`, `NodeAffinity`, `OutOfcpu`, `TopologyAffinityError`, …",
        "the kubelet, which refused it",
        ExitClass.DISRUPTED,
        lambda e: not e.ran,
    ),
    Row(
        "container reason `ContainerStatusUnknown` (137), `Unknown` (255)",
        "the loss of its node, or of the node's container runtime",
        ExitClass.DISRUPTED,
        lambda e: e.exit.reason in LOST_WITH_NODE and e.outcome != "failed",
    ),
    Row(
        f"exit code {EXIT_INVALID} of our container, or of the init containers `{naming.SOURCE}`, `{naming.PACKAGES}`",
        "the trainer: the manifest can't be run as it is",
        ExitClass.INVALID,
        lambda e: e.exit.code == EXIT_INVALID and e.exit.init_container in (None, naming.SOURCE, naming.PACKAGES),
        by_itself=True,
    ),
    Row(
        "container reason `OOMKilled`",
        "the kernel, at the pod's own memory limit",
        ExitClass.FAILED,
        lambda e: e.exit.reason == "OOMKilled",
        by_itself=True,
    ),
    Row(
        "container reason `StartError`, of its command, folder or memory limit",
        "the container runtime, for a fault of the job's",
        ExitClass.FAILED,
        lambda e: e.exit.reason in NOT_STARTED and any(words in e.exit.message for words in OWN_START),
        by_itself=True,
    ),
    Row(
        "container reason `StartError` otherwise",
        "the container runtime: its node is busy, or about to go",
        ExitClass.DISRUPTED,
        lambda e: e.exit.reason in NOT_STARTED,
    ),
    Row(
        "result `failed`, whatever the exit code (a killed process of a script is 137)",
        "a process of the worker: an exception, or a signal that the worker itself outlived",
        ExitClass.FAILED,
        lambda e: e.outcome == "failed",
        by_itself=True,
    ),
    Row(
        "exit code 130, 137 or 143 without a result",
        "a signal from outside: somebody on its node",
        ExitClass.DISRUPTED,
        lambda e: e.exit.code in SIGNALS,
        by_itself=True,
    ),
    Row(
        "another exit code of an init container",
        "an init container, of the user's or injected",
        ExitClass.FAILED,
        lambda e: e.exit.init_container is not None,
    ),
    Row(
        "exit code 0 without a result",
        "a script that did not train",
        ExitClass.FAILED,
        lambda e: e.exit.code == 0,
        by_itself=True,
    ),
    Row("another exit code", "the worker's process, by itself", ExitClass.FAILED, lambda e: True, by_itself=True),
)
ACTIONS = {"FailJob": ExitClass.FATAL, "Ignore": ExitClass.DISRUPTED, "Count": ExitClass.FAILED}


def row_of(pod: Pod) -> Row:
    """How a pod that has ended did so."""
    ended = Ended(pod, pod.exit or Exit(0, "", "", None, None), parse_result(pod))
    return next(row for row in ROWS if row.matches(ended))


def ending(pod: Pod, policy: PodFailurePolicy | None = None) -> ExitClass:
    """The class of a pod that has ended. What it may have done by itself, the job's rules may judge differently."""
    row = row_of(pod)
    if policy is not None and row.by_itself and pod.exit is not None and pod.exit.init_container is None:
        action = policy.action(pod.exit.code)
        return row.ending if action is None else ACTIONS[action]
    return row.ending


CUT = re.compile(r'\s*\{\s*"outcome":\s*"(completed|left|failed)",\s*"step":\s*(\d{1,15}),\s*"epoch":\s*(\d{1,15})\s*,')
"""How the result of a trainer begins whose message was too long: Kubernetes cut the rest."""


def parse_result(pod: Pod) -> Result | None:
    """What the trainer left in the termination message, if it came that far."""
    if pod.exit is None or pod.exit.init_container is not None or not pod.exit.message.lstrip().startswith("{"):
        return None
    try:
        result: Result = Result.model_validate(json.loads(pod.exit.message))
        return result
    except (ValueError, ValidationError, RecursionError):
        cut = CUT.match(pod.exit.message)
    if cut is None:
        return None
    return Result.model_validate({"outcome": cut[1], "step": int(cut[2]), "epoch": int(cut[3])})


def explain(pod: Pod, limit: int = 800) -> str:
    """Why it ended, for a person: the trainer's own words, else the last lines of its log."""
    exited = pod.exit
    if pod.reason == "Evicted" and any(words in pod.message for words in OWN_LIMITS):
        return f"{pod.message.strip()[-limit:]} Raise that limit, or write less"
    if exited is None:
        return pod.message[-limit:] or pod.reason or "it ended before its container started"
    if exited.reason == "OOMKilled":
        return "out of memory: raise workers.resources.limits.memory or lower the batch size"
    result = parse_result(pod)
    words = exited.message.strip() if result is None else result.message or f"result {result.outcome}"
    if not words and exited.code == 0:
        words = "it exited with 0 but left no result: a script trains in `with adaptrain.elastic.Elastic(…)`"
    words = words[-limit:]
    whose = "" if exited.init_container is None else f"init container {exited.init_container}: "
    return f"{whose}exit code {exited.code}" + (f": {words}" if words else "")


CONSEQUENCES = {
    ExitClass.COMPLETED: ("nothing", "the job has succeeded", "condition Complete"),
    ExitClass.DISRUPTED: ("nothing", "it is replaced at once", "event WorkersCreated, `status.recentChanges`"),
    ExitClass.FAILED: (
        "one of `maxRestarts`, those of one moment together",
        "it is replaced after 1, 2, 4, … 60 s",
        "condition Restarting, at last Failed (`TooManyFailures`, `StartFailed`)",
    ),
    ExitClass.INVALID: ("nothing", "the job has failed", "condition Failed (`InvalidManifest`)"),
    ExitClass.FATAL: ("nothing", "the job has failed", "condition Failed (`PodFailurePolicy`)"),
}


def table() -> str:
    """The rows as Markdown, and what each class of endings means for the job."""
    classes = ["| it counts as | what is counted | what follows | where that is told |", "| --- | --- | --- | --- |"]
    classes += [f"| {one.value} | {' | '.join(CONSEQUENCES[one])} |" for one in ExitClass]
    ways = ["| how it ended | who ended it | it counts as | podFailurePolicy |", "| --- | --- | --- | --- |"]
    ways += [f"| {r.how} | {r.who} | {r.ending.value} | {'asked' if r.by_itself else ''} |" for r in ROWS]
    return "\n".join([*ways, "", *classes, ""])
