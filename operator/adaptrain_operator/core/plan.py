"""What shall be done: the outcome of a decision, still without any I/O."""

from dataclasses import dataclass, field
from typing import Literal

from adaptrain_api.training.status import TrainingJobStatus

from adaptrain_operator.core.observed import Object


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod to delete, by name and uid: a later pod of that name is never hit."""

    name: str
    uid: str
    grace: int | None = None
    """Absent: the pod's own."""


@dataclass(frozen=True, slots=True)
class Event:
    """A notable change, for ``kubectl describe``."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    made: bool = False
    """It tells of the plan's new pods, and is not told if the API server refuses them."""


@dataclass(slots=True)
class Plan:
    """The reconciler carries it out in this order: status, delete, apply, create, events.

    Status comes first since it reserves numbers: a pod whose number isn't on record must not exist.
    """

    status: TrainingJobStatus
    delete: list[Deletion] = field(default_factory=list)
    apply: list[Object] = field(default_factory=list)
    create: list[Object] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    remove_job: bool = False
    requeue_after: float | None = None
    suspects: frozenset[str] = frozenset()
    """Nodes whose Lease should be read until we know better."""
    ask: tuple[int, str] | None = None
    """The coordinator to pull progress from: its number and address."""

    def wake(self, seconds: float) -> None:
        """Decide again after at most so long."""
        seconds = max(0.05, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
