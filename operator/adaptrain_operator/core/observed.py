"""What is: typed views of the objects that the API server returned. The rest of the core never reads a raw pod."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.training.job import KIND, TrainingJobSpec
from adaptrain_api.training.status import TrainingJobStatus

from adaptrain_operator.core import containers, naming
from adaptrain_operator.core.containers import TERMINAL, Exit, timestamp
from adaptrain_operator.core.defaults import Defaults

Object = dict[str, Any]
T = TypeVar("T")


def moment(seconds: float) -> datetime:
    """A time as it is kept in a status: the API keeps whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC)


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker's or coordinator's pod."""

    name: str
    uid: str
    number: int
    phase: str
    """Of its own container, whatever others do."""
    reason: str
    message: str
    created: float
    node: str | None
    ip: str | None
    ready: bool
    running_since: float | None
    deleting_until: float | None
    """When its grace ends; absent: nobody has deleted it."""
    grace: int | None
    disrupted: str | None
    """Why the control plane took it away, as its condition DisruptionTarget says; absent: it did not."""
    template_hash: str
    avoided_nodes: frozenset[str]
    unschedulable: str | None
    unprepared_since: float | None
    """Since when its node has not mounted its volumes, or has no network for it; absent: it has, or was not told to."""
    waiting: tuple[str, str] | None
    """Why its container doesn't start: reason and message."""
    exit: Exit | None
    lingers: bool
    """It has ended for us, but another container keeps it running."""
    image: str
    source_commit: str | None
    """Of the script's files that its init container fetched."""

    @property
    def deleting(self) -> bool:
        return self.deleting_until is not None

    @property
    def terminal(self) -> bool:
        return self.phase in TERMINAL

    @property
    def active(self) -> bool:
        """It runs or will run, as far as anybody has said."""
        return not self.terminal and not self.deleting

    @classmethod
    def read(cls, pod: Object) -> "Pod":
        meta, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
        annotations = meta.get("annotations") or {}
        own = containers.read(pod, naming.role(pod) or naming.WORKER)
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        scheduled = conditions.get("PodScheduled", {})
        prepared_for = conditions.get("PodReadyToStartContainers", {})
        unprepared = status.get("phase") == "Pending" and prepared_for.get("status") == "False"
        target = conditions.get("DisruptionTarget", {})
        avoided = annotations.get(naming.AVOIDED_NODES, "")
        number = re.search(r"-([0-9]{1,9})$", meta["name"])
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            number=int(number.group(1)) if number else -1,
            phase=own.phase,
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            created=timestamp(meta.get("creationTimestamp")) or 0.0,
            node=spec.get("nodeName"),
            ip=status.get("podIP"),
            ready=own.ready,
            running_since=own.running_since,
            deleting_until=timestamp(meta.get("deletionTimestamp")),
            grace=meta.get("deletionGracePeriodSeconds"),
            disrupted=target.get("reason", "") or "unnamed" if target.get("status") == "True" else None,
            # One whose labels were changed is replaced as one of another template is.
            template_hash="" if naming.relabelled(pod) else annotations.get(naming.TEMPLATE_HASH, ""),
            avoided_nodes=frozenset(filter(None, avoided.split(","))),
            unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else None,
            unprepared_since=timestamp(prepared_for.get("lastTransitionTime")) if unprepared else None,
            waiting=own.waiting,
            exit=own.exit,
            lingers=own.lingers,
            image=own.image,
            source_commit=own.fetched,
        )


LEASE_STALE = 12.0
"""A kubelet renews its Lease every ten seconds. Watched unchanged for longer than this: the node is lost."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A node's Lease as we saw it; read only of nodes that are suspected of something."""

    renewed: float
    """By the node's clock: it only tells one renewal from another."""
    first_seen: float
    """When this renewal was seen first, by our clock."""
    last_seen: float
    watched: bool = False
    """We saw it replace an earlier renewal, so it is no older than our look before that."""

    @property
    def stale(self) -> bool:
        return self.last_seen - self.first_seen > LEASE_STALE

    def renewed_after(self, moment: float) -> bool:
        """Whether the node was alive after this moment of our clock."""
        return self.watched and self.first_seen > moment + 1


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """The part of a node that decisions need."""

    name: str
    cordoned: bool = False
    ready: bool = True
    taints: tuple[Taint, ...] = ()

    @classmethod
    def read(cls, node: Object) -> "Node":
        spec = node.get("spec", {})
        conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions") or []}
        return cls(
            name=node["metadata"]["name"],
            cordoned=bool(spec.get("unschedulable")),
            taints=tuple(
                Taint(one["key"], one.get("effect", ""), one.get("value", "")) for one in spec.get("taints") or []
            ),
            ready=conditions.get("Ready", "True") == "True",
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """The checkpoint's PersistentVolumeClaim; ``known`` is false when we may not read it."""

    exists: bool
    access_modes: tuple[str, ...] = ()
    known: bool = True


@dataclass(frozen=True, slots=True)
class Contact:
    """What we know from the newest coordinator, and since when we don't."""

    number: int = 0
    """The coordinator that was asked."""
    progress: Progress | None = None
    """The last answer, perhaps of an earlier coordinator."""
    asked: float | None = None
    """Since when it is asked; absent: not yet, because we or it have just started."""
    answered: float | None = None
    """When the asked coordinator answered last; absent: never yet."""
    lost_since: float | None = None
    """Since when a coordinator that had answered doesn't."""
    cut_off: bool = False
    """Every coordinator fell silent at once: it is we who are cut off."""
    interval: float = 1.0
    """Seconds from one question to the next."""

    def fresh(self, now: float) -> bool:
        """Whether the answer tells the present."""
        return (
            self.progress is not None
            and self.answered is not None
            and self.progress.number == self.number
            and now - self.answered < self.interval + 4.0
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """The API server refused a pod."""

    reason: str
    message: str
    since: float
    retry_at: float


@dataclass(frozen=True, slots=True)
class Job:
    """An AdaptiveTrainingJob."""

    kind: ClassVar[str] = KIND

    name: str
    namespace: str
    uid: str
    generation: int
    created: float
    deleting: bool
    spec: TrainingJobSpec
    status: TrainingJobStatus
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was made of its name, uid and spec alone, kept for as long as they are the same."""

    def once(self, what: str, make: Callable[["Job"], T]) -> T:
        """What depends on nothing but name, uid and spec: a spec may have a megabyte, and decisions are frequent."""
        if what not in self.made:
            self.made[what] = make(self)
        found: T = self.made[what]
        return found


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything besides the job that a decision rests on."""

    workers: tuple[Pod, ...] = ()
    coordinators: tuple[Pod, ...] = ()
    children: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Watched children of fixed names, by kind and name."""
    contact: Contact = Contact()
    nodes: Mapping[str, Node] | None = None
    """Absent: no right to see nodes."""
    leases: Mapping[str, Lease] = field(default_factory=dict)
    claim: Claim | None = None
    problem: Problem | None = None
    default_image: str = ""
    defaults: Defaults = field(default_factory=Defaults)

    def lost(self, node: str | None, now: float) -> bool:
        """Whether a node has gone away: its Lease went stale under our eyes, or the node controller says so."""
        if node is None:
            return False
        lease = self.leases.get(node)
        if lease is not None and lease.last_seen > now - 10:
            return lease.stale
        known = None if self.nodes is None else self.nodes.get(node)
        return known is not None and not known.ready
