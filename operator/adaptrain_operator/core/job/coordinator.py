"""Which coordinator the job has. It is no part of a step, so it is replaced on suspicion, and its number only grows."""

from adaptrain_operator.core import naming
from adaptrain_operator.core.job import diagnostics, drain, exit_reason, starts
from adaptrain_operator.core.job.context import Draft, finished
from adaptrain_operator.core.objects import owned, ownership
from adaptrain_operator.core.objects.pods import coordinator_hash, coordinator_pod, template_hash
from adaptrain_operator.core.observed import Pod

UNREACHABLE = 8.0
"""Seconds of silence after which a coordinator that had answered is replaced."""
START_SECONDS = 120.0
"""A coordinator whose container runs has this long to be ready."""
LAST_WORDS = 10.0
"""Seconds that the coordinator of a job that is complete is kept to be heard once more."""
KEEP_FAILED = 3
FORGET_FAILED = 600.0


def decide_coordinator(draft: Draft) -> None:
    """Keep exactly one coordinator, of the highest number, behind the Service."""
    pods = draft.seen.coordinators
    number = max([draft.job.status.coordinator or 0, *(pod.number for pod in pods)])
    current = next((pod for pod in pods if pod.number == number), None)
    reason = _why_replace(draft, number, current)
    if reason is not None and _may_create(draft, pods):
        number += 1
        _create(draft, number, current)
        # Where the last one was refused there is none that is replaced.
        if number > 1 and (current is not None or draft.seen.problem is None):
            words = f"coordinator {number - 1} {reason}: {number} takes over"
            draft.event("Warning", "CoordinatorReplaced", words, made=True)
    draft.fields["coordinator"] = number or None
    _clean(draft, pods, number)
    if number:
        service = owned.coordinator_service(draft.job, number)
        found = draft.seen.children.get(("Service", service["metadata"]["name"]))
        if not ownership.right(service, found):
            draft.plan.apply.append(service)
    if current is not None and current.number == number:
        _ask(draft, current)


def hindered(draft: Draft) -> bool:
    """Whether there can be no coordinator for now: the API server refuses it, or no node has room for it."""
    active = [pod for pod in draft.seen.coordinators if pod.active]
    if not active:
        return draft.seen.problem is not None
    return all(pod.node is None and pod.unschedulable is not None for pod in active)


def remove_coordinators(draft: Draft) -> None:
    """The job needs none any more."""
    for pod in draft.seen.coordinators:
        if pod.active or pod.lingers:
            draft.delete(pod)


def hear_out(draft: Draft, ended: float) -> bool:
    """Whether the coordinator of a job that is complete is kept until its last words have come, and is asked for them:
    training may take less time than passes between two questions."""
    progress, left = draft.seen.contact.progress, ended + LAST_WORDS - draft.now
    if left <= 0 or (progress is not None and progress.result is not None):
        return False
    current = max(draft.seen.coordinators, key=lambda pod: pod.number, default=None)
    if current is None or not current.active:
        return False
    _ask(draft, current)  # once it is ready: it may have started just before
    draft.plan.wake(left)
    return True


def _ask(draft: Draft, current: Pod | None) -> None:
    # Asking before it is ready would be in vain; once it has answered, being ready is no longer what counts.
    answers = current is not None and (current.ready or draft.seen.contact.answered is not None)
    if current is not None and answers and current.active and current.ip:
        draft.plan.ask = (current.number, current.ip)


def _why_replace(draft: Draft, number: int, current: Pod | None) -> str | None:
    contact, now = draft.seen.contact, draft.now
    if current is None:
        return "is gone" if number else "is the first"
    if current.terminal:
        return f"ended ({exit_reason.explain(current, 200)})"
    if current.deleting:
        return "is being deleted"
    if drain.needlessly_kept_away(draft, current):
        return "was kept away from nodes that are back, and found no other"
    # A node that answers is not lost, however late its Lease is: on a busy one both may be said at once.
    if draft.seen.lost(current.node, now) and not (draft.fresh and contact.number == number):
        return f"was on node {current.node}, which is lost"
    if not current.ready and current.running_since is not None and contact.answered is None:
        if now - current.running_since >= START_SECONDS:
            return f"runs and was not ready within {START_SECONDS:.0f} seconds"
        draft.plan.wake(current.running_since + START_SECONDS - now)
    if contact.number == number and contact.lost_since is not None and not contact.cut_off:
        silence = now - contact.lost_since
        if silence >= UNREACHABLE:
            return f"has not answered for {UNREACHABLE:.0f} seconds"
        draft.plan.wake(UNREACHABLE - silence)
    if _outdated(draft, current):
        return "is of another image or search than is asked for"
    return None


def _outdated(draft: Draft, current: Pod) -> bool:
    """The image was changed, and every worker has it already: the coordinator comes last, so that a bad image stops
    at the first worker and training goes on."""
    if current.template_hash == coordinator_hash(draft.job):
        return False
    wanted, tried = template_hash(draft.job), not starts.on_trial(draft)
    if draft.job.spec.search is not None:
        # Evaluators go on while it is replaced: a new budget is heard at once, a new image once they have tried it.
        return tried or current.image == draft.job.spec.image
    ready = draft.ready
    return (
        draft.fresh
        and tried
        and len(ready) >= draft.job.spec.workers.wanted
        and all(pod.template_hash == wanted for pod in draft.active)
    )


def _may_create(draft: Draft, pods: tuple[Pod, ...]) -> bool:
    """Not while the API server refuses pods, and ever more slowly when it fails by itself again and again."""
    problem = draft.seen.problem
    if problem is not None and draft.now < problem.retry_at:
        draft.plan.wake(problem.retry_at - draft.now)
        return False
    failed = [pod for pod in pods if _failed(pod) and draft.now - finished(pod) < FORGET_FAILED]
    if len(failed) > 1:
        until = max(finished(pod) for pod in failed) + 10.0 * (len(failed) - 1)
        if draft.now < until:
            draft.plan.wake(until - draft.now)
            return False
    return True


def _failed(pod: Pod) -> bool:
    return pod.terminal and exit_reason.ending(pod) is exit_reason.ExitClass.FAILED


def _create(draft: Draft, number: int, previous: Pod | None) -> None:
    job, seen = draft.job, draft.seen
    left = None if previous is None or previous.terminal else previous.node
    if previous is not None and seen.lost(previous.node, draft.now) and previous.node is not None:
        draft.avoided.setdefault(previous.node, draft.now)
    image, one_node = job.spec.image or seen.default_image, diagnostics.shares_node(draft)
    proved = starts.proved_image(draft)
    pod = coordinator_pod(job, number, proved or image, left, drain.avoided(draft), seen.defaults, one_node)
    if proved is not None:
        pod["metadata"]["annotations"][naming.TEMPLATE_HASH] = ""  # so that it is replaced once the trial is over
    draft.plan.create.append(pod)


def _clean(draft: Draft, pods: tuple[Pod, ...], number: int) -> None:
    """Old ones go at once. The last few that failed by themselves stay, for their logs."""
    failed = sorted((pod for pod in pods if _failed(pod)), key=finished, reverse=True)
    kept = {pod.uid for pod in failed[:KEEP_FAILED]}
    for pod in pods:
        if pod.number != number and (pod.uid not in kept or pod.lingers):
            draft.delete(pod, grace=0)
