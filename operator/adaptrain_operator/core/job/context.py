"""A decision in the making: what is, what shall be done, and the status that tells both."""

from dataclasses import dataclass, field
from typing import Any, Literal

from adaptrain_api.text import printable

from adaptrain_operator.core.conditions import Conditions
from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.observed import Job, Observed, Pod
from adaptrain_operator.core.plan import Deletion, Event, Plan

PATIENCE = 30.0
"""Seconds after which a pod that is still pending, or runs without taking part, is no longer waited for."""

QUICK = 10.0
"""A disruption so many seconds after a pod was made may be one that every pod meets."""
OFTEN = 3
"""So many of them slow the next ones down, and are told."""

FIRST_WORD = 15.0
"""Seconds that a coordinator is given to answer an operator that has just started."""


@dataclass(slots=True)
class Draft:
    """Carried from rule to rule."""

    job: Job
    seen: Observed
    now: float
    plan: Plan
    conditions: Conditions
    fields: dict[str, Any] = field(default_factory=dict)
    """Status fields to change, by their Python names."""
    avoided: dict[str, float] = field(default_factory=dict)
    """Silent nodes, and since when."""
    gone: set[str] = field(default_factory=set)
    """Uids of pods that this plan deletes."""

    def value(self, name: str) -> Any:
        """A status field as it will be."""
        return self.fields.get(name, getattr(self.job.status, name))

    def delete(self, pod: Pod, grace: int | None = None) -> None:
        """Delete a pod, unless that is under way already."""
        if pod.uid in self.gone or (pod.deleting and (grace is None or pod.grace == 0)):
            return
        self.gone.add(pod.uid)
        self.plan.delete.append(Deletion(pod.name, pod.uid, grace))

    def clear_away(self, pod: Pod) -> None:
        """Delete a pod that has ended: at once, unless another container still runs in it."""
        self.delete(pod, grace=None if pod.lingers else 0)

    def event(self, type: Literal["Normal", "Warning"], reason: str, message: str, made: bool = False) -> None:
        self.plan.events.append(Event(type, reason, printable(message), made))

    @property
    def fresh(self) -> bool:
        return self.seen.contact.fresh(self.now)

    @property
    def unheard(self) -> bool:
        """We have just started and heard nothing yet of a job that trained: what its status says is still the best."""
        contact = self.seen.contact
        if contact.progress is not None or self.job.status.phase != "Running":
            return False
        left = FIRST_WORD if contact.asked is None else contact.asked + FIRST_WORD - self.now
        if left > 0:
            self.plan.wake(left)
        return left > 0

    @property
    def begun(self) -> bool:
        """Whether training has ever begun since the job was started or resumed, as far as is known."""
        status = self.job.status
        known = self.value("running_time") is not None or status.step is not None or status.phase == "Running"
        return known or self.seen.contact.progress is not None

    @property
    def members(self) -> frozenset[str]:
        """Uids of those that take part in training, as far as we last heard."""
        progress = self.seen.contact.progress
        return frozenset() if progress is None else frozenset(member.id for member in progress.members)

    @property
    def trained(self) -> frozenset[str]:
        """Uids of those of them of which nobody says that they have not trained yet."""
        progress = self.seen.contact.progress
        members = [] if progress is None else progress.members
        return frozenset(member.id for member in members if member.trained is not False)

    @property
    def idle(self) -> frozenset[str]:
        """Uids of those of them that have nothing to do."""
        progress = self.seen.contact.progress
        return frozenset() if progress is None else frozenset(member.id for member in progress.members if member.idle)

    @property
    def active(self) -> list[Pod]:
        """Workers that run or will run after this plan, oldest first."""
        kept = [pod for pod in self.seen.workers if pod.active and pod.uid not in self.gone]
        return sorted(kept, key=lambda pod: pod.number)

    @property
    def ready(self) -> list[Pod]:
        """Active workers that take part in training."""
        members = self.members
        return [pod for pod in self.active if pod.uid in members]

    def ended(self, *classes: exit_reason.ExitClass) -> list[Pod]:
        """Workers that have ended in one of these ways, the newest end first."""
        ended = [
            pod
            for pod in self.seen.workers
            if pod.terminal and exit_reason.ending(pod, self.job.spec.pod_failure_policy) in classes
        ]
        return sorted(ended, key=finished, reverse=True)

    @property
    def quickly_disrupted(self) -> list[Pod]:
        """Workers that were taken away as soon as they were made, the newest end first."""
        return [pod for pod in self.ended(exit_reason.ExitClass.DISRUPTED) if quick(pod) and pod.uid not in self.gone]


def quick(pod: Pod) -> bool:
    """Whether a pod ended right after it was made."""
    return finished(pod) - pod.created < QUICK


def finished(pod: Pod) -> float:
    """When a pod ended."""
    return pod.created if pod.exit is None or pod.exit.finished is None else pod.exit.finished
