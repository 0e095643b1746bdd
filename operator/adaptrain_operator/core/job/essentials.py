"""What is carried out of a job whatever its pods, its coordinator and the rest of its spec say: suspension, the
deadline, and the removal of what has ended."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from adaptrain_api.base import Open
from adaptrain_api.training.status import TrainingJobStatus

from adaptrain_operator.core.conditions import Conditions
from adaptrain_operator.core.observed import Contact, Job, Observed, Pod, moment
from adaptrain_operator.core.plan import Deletion, Plan

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Open)

Decide = Callable[[Job, Observed, float], Plan]
ASIDE = "DecisionFailed"
"""Reason of the condition that tells that only the essentials are carried out."""


@dataclass(frozen=True, slots=True)
class Essentials:
    """The part of a spec that is read apart from all else."""

    suspend: bool
    active_deadline_seconds: float | None
    ttl_seconds_after_finished: float | None

    @classmethod
    def read(cls, spec: Mapping[str, Any]) -> "Essentials":
        """From a spec that may be no valid one."""

        def seconds(name: str) -> float | None:
            given = spec.get(name)
            return given if isinstance(given, int | float) and 0 <= given < 2**31 else None

        return cls(spec.get("suspend") is True, seconds("activeDeadlineSeconds"), seconds("ttlSecondsAfterFinished"))

    @classmethod
    def of(cls, job: Job) -> "Essentials":
        spec = job.spec
        return cls(spec.suspend, spec.active_deadline_seconds, spec.ttl_seconds_after_finished)


def decide_anyhow(decide: Decide, job: Job, seen: Observed, now: float) -> tuple[Plan, list[str]]:
    """A decision; if it raises, one that rests on less.

    Returns:
        The plan, and what was left out: nothing if all is well.
    """
    left_out: list[str] = []
    for what, rest in (("", seen), ("progress", _without_progress(seen)), ("words", _without_words(seen))):
        left_out += [what] if what else []
        try:
            return decide(job, rest, now), left_out
        except Exception:
            logger.exception("a decision failed", extra={"job": f"{job.namespace}/{job.name}"})
    essentials, message = Essentials.of(job), "the operator can't decide for this job; its log says why"
    plan = decide_essentials(essentials, job.status, job.generation, seen, now, (ASIDE, message))
    return plan, [*left_out, "everything"]


def decide_essentials(
    wanted: Essentials,
    status: TrainingJobStatus,
    generation: int,
    seen: Observed,
    now: float,
    aside: tuple[str, str],
) -> Plan:
    """Suspend, end or remove the job, and else leave what runs alone.

    Args:
        aside: why no more than that is done, in a word and in a sentence.
    """
    plan, conditions = Plan(status=status), Conditions(status.conditions, generation, now)
    fields: dict[str, Any] = {"phase": status.phase or "Pending"}
    ended = conditions.true("Complete") or conditions.true("Failed")
    started, limit = status.start_time, wanted.active_deadline_seconds
    if not ended and not wanted.suspend and started is not None and limit is not None:
        left = started.timestamp() + limit - now
        if left <= 0:
            message = f"the job ran for activeDeadlineSeconds ({limit:.0f} s) without completing"
            conditions.set("Failed", True, "DeadlineExceeded", message)
            fields |= {"phase": "Failed", "completion_time": moment(now), "ready_replicas": 0}
            ended = True
        else:
            plan.wake(left)
    if ended:
        done = fields.get("completion_time") or status.completion_time or moment(now)
        fields |= {"completion_time": done}
        ttl = wanted.ttl_seconds_after_finished
        plan.remove_job = ttl is not None and now >= done.timestamp() + ttl
        if ttl is not None and not plan.remove_job:
            plan.wake(done.timestamp() + ttl - now)
    elif wanted.suspend:
        conditions.set("Suspended", True, "JobSuspended", "workers are removed and progress is kept")
        left_running = any(not pod.terminal for pod in seen.workers)
        fields |= {"phase": "Pending" if left_running else "Suspended", "start_time": None}
    if ended or wanted.suspend:
        for pod in (*seen.workers, *seen.coordinators):
            if pod.active or pod.lingers:
                plan.delete.append(Deletion(pod.name, pod.uid))
    else:
        conditions.set("PodsReady", False, *aside)
    plan.status = status.model_copy(update={**fields, "conditions": conditions.list()})
    return plan


def _without_progress(seen: Observed) -> Observed:
    contact = seen.contact
    return replace(seen, contact=Contact(number=contact.number, asked=contact.asked))


def _without_words(seen: Observed) -> Observed:
    """Nor what pods say: a container's last words are its image's."""

    def silent(pod: Pod) -> Pod:
        exit = None if pod.exit is None else replace(pod.exit, message="", reason="")
        return replace(pod, message="", reason="", waiting=None, unschedulable=None, exit=exit, source_commit=None)

    workers, coordinators = tuple(map(silent, seen.workers)), tuple(map(silent, seen.coordinators))
    return replace(_without_progress(seen), workers=workers, coordinators=coordinators)
