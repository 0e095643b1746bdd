"""What a user is told of workers on their way: resized, or replaced by others of a new template."""

from adaptrain_operator.core.job import exit_reason, starts
from adaptrain_operator.core.job.context import Draft
from adaptrain_operator.core.job.diagnostics import claim_problem, pod_problem, unschedulable, wants_room
from adaptrain_operator.core.objects.pods import template_hash

STOPPED = ("RolloutStopped", "NoRoomToReplace")
"""Reasons of the Rescaling condition that a user should act on."""


def tell_rescaling(draft: Draft) -> None:
    """The Rescaling condition: whether the number or the make of the workers is on its way to what is wanted."""
    wanted, now, template = draft.job.spec.wanted_workers, len(draft.ready), template_hash(draft.job)
    conditions = draft.conditions
    if draft.unheard or (draft.job.status.phase != "Running" and not conditions.true("Rescaling")):
        return
    stale = sum(pod.template_hash != template for pod in draft.active)
    if stale or (starts.on_trial(draft) and starts.failed_starts(draft)):
        conditions.set("Rescaling", True, *_rollout(draft, f"{stale} workers are still of the old template"))
    elif now < wanted:
        conditions.set("Rescaling", True, "ScalingUp", f"{now} of {wanted} workers take part; training goes on")
    elif now > wanted or len(draft.active) > wanted:
        conditions.set("Rescaling", True, "ScalingDown", f"{now} workers take part, {wanted} are wanted")
    else:
        conditions.clear("Rescaling", "Done", f"{wanted} workers are wanted and take part")


def _rollout(draft: Draft, head: str) -> tuple[str, str]:
    """How a change of the template gets on: reason and message."""
    spec, template = draft.job.spec.workers, template_hash(draft.job)
    count = starts.failed_starts(draft)
    if count and starts.on_trial(draft):
        failed = next((pod for pod in draft.ended(*exit_reason.BAD) if pod.template_hash == template), None)
        last = "" if failed is None else f"; the last one, {failed.name}: {exit_reason.explain(failed)}"
        told = f"{head}, and {count} of the new one failed before they trained{last}"
        if starts.stopped(draft):
            return "RolloutStopped", f"{told}; change the template again, or change it back: it costs no restart"
        return "RollingUpdate", told
    refused = draft.seen.problem
    problem = claim_problem(draft) or (None if refused is None else (refused.reason, refused.message))
    if problem is not None and problem[0] != "QuotaExceeded":
        return "RolloutStopped", f"{head}: none of the new one can be made: {problem[1]}"
    waiting = [pod for pod in draft.active if pod.template_hash == template and pod.uid not in draft.members]
    for pod in waiting:
        found = pod_problem(draft, pod)
        if found is not None and not wants_room(pod):
            return "RolloutStopped", f"{head}: worker {pod.number} of the new one does not start: {found[1]}"
    for pod in waiting:
        if pod.unschedulable is not None and pod.node is None and len(draft.ready) <= spec.min:
            return (
                "NoRoomToReplace",
                f"{head}: there is no place for worker {pod.number} of the new one beside them"
                f" ({unschedulable(pod.unschedulable)}), and at workers.min none may leave first: make room, or set"
                " workers.rollingUpdate.maxUnavailable to 1",
            )
    return "RollingUpdate", head
