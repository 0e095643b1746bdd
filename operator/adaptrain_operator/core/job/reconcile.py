"""From what is wanted and what is, to what shall be done. Pure: the same inputs give the same plan."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from adaptrain_api.components import mistake
from adaptrain_api.contracts.coordinator_api import Result, headline, of_model
from adaptrain_api.training.checkpoints import checkpoint_folder, checkpoint_uri
from adaptrain_api.training.status import MOST_METRICS, AvoidedNode, TrainedModel, TrainingJobStatus

from adaptrain_operator.core import naming
from adaptrain_operator.core.conditions import Conditions
from adaptrain_operator.core.job import diagnostics, drain, exit_reason
from adaptrain_operator.core.job.context import Draft
from adaptrain_operator.core.job.coordinator import decide_coordinator, hear_out, remove_coordinators
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.job.failure_policy import backoff_until, count_failures, tell_restarts, too_many
from adaptrain_operator.core.job.rollouts import STOPPED, tell_rescaling
from adaptrain_operator.core.job.starts import note_training, of_no_account
from adaptrain_operator.core.job.workers import decide_workers, remove_workers
from adaptrain_operator.core.objects import owned, ownership
from adaptrain_operator.core.observed import Job, Observed, Pod, moment
from adaptrain_operator.core.plan import Plan

LINGER = 60.0
"""Seconds that workers get to end by themselves after the job has ended."""


def decide(job: Job, seen: Observed, now: float) -> Plan:
    """What to do for a job, given everything that was seen of it. Idempotent: carried out, it asks for nothing more."""
    job = replace(job, status=_not_later(job.status, now))
    draft = Draft(job, seen, now, Plan(status=job.status), Conditions(job.status.conditions, job.generation, now))
    if job.deleting:
        # Its children go with it: whatever we made now would be garbage.
        return draft.plan
    if draft.conditions.true("Complete") or draft.conditions.true("Failed"):
        _after_end(draft)
    elif not _end(draft):
        if job.spec.suspend:
            _suspend(draft)
        else:
            _run(draft)
    return _finish(draft)


def _not_later(status: TrainingJobStatus, now: float) -> TrainingJobStatus:
    """A status whose times are not in the future: one that is was written by a process whose clock is ahead of ours."""
    latest = moment(now)
    times = {
        name: getattr(status, name) for name in ("start_time", "running_time", "completion_time", "last_failure_time")
    }
    late: dict[str, Any] = {name: latest for name, time in times.items() if time is not None and time > latest}
    if any(node.since > latest for node in status.avoided_nodes):
        nodes = [node.model_copy(update={"since": min(node.since, latest)}) for node in status.avoided_nodes]
        late["avoided_nodes"] = nodes
    return status.model_copy(update=late) if late else status


def _run(draft: Draft) -> None:
    job, seen = draft.job, draft.seen
    if job.status.start_time is None:
        draft.fields["start_time"] = moment(draft.now)
    draft.conditions.clear("Suspended", "Resumed", "the job runs again")
    note_training(draft)
    failed = count_failures(draft)
    until = backoff_until(draft)
    if failed is not None and (why := too_many(draft, failed)) is not None:
        _fail(draft, *why)
        return
    deadline = _deadline(draft)
    if deadline is not None and draft.now >= deadline:
        seconds = job.spec.active_deadline_seconds
        _fail(draft, "DeadlineExceeded", f"the job ran for activeDeadlineSeconds ({seconds} s) without completing")
        return
    if deadline is not None:
        draft.plan.wake(deadline - draft.now)
    if _cannot_begin(draft) or _never_began(draft):
        return
    _apply_children(draft)
    claim = diagnostics.claim_problem(draft)
    if claim is not None:
        draft.plan.wake(5.0)
    decide_workers(draft, claim is not None, until)
    decide_coordinator(draft)
    blocked = claim or ((seen.problem.reason, seen.problem.message) if seen.problem is not None else None)
    diagnostics.tell_progress(draft)
    diagnostics.tell_pods(draft, blocked)
    tell_rescaling(draft)
    drain.tell(draft)
    diagnostics.tell_checkpoint(draft)
    diagnostics.tell_changes(draft)
    tell_restarts(draft, failed, until)
    draft.fields["phase"] = _phase(draft)
    if draft.fields["phase"] == "Running" and job.status.running_time is None:
        draft.fields["running_time"] = moment(draft.now)
    draft.plan.suspects = _suspects(draft)
    if draft.plan.suspects:
        draft.plan.wake(1.0)


def _phase(draft: Draft) -> str:
    if draft.unheard:
        return "Running"
    enough = len(draft.ready) >= min(draft.job.spec.workers.min, draft.job.spec.wanted_workers)
    if draft.fresh or draft.job.status.phase != "Running":
        return "Running" if enough and draft.fresh else "Pending"
    # While a coordinator is being replaced its workers train on.
    return "Running" if enough else "Pending"


def _deadline(draft: Draft) -> float | None:
    started: datetime | None = draft.value("start_time")
    limit = draft.job.spec.active_deadline_seconds
    return None if limit is None or started is None else started.timestamp() + limit


def _cannot_begin(draft: Draft) -> bool:
    """Whether the job fails before any pod is made, for what a worker would refuse. An image of the user's may be of
    another release, and know more."""
    if draft.job.spec.image is not None or draft.job.status.next_worker:
        return False
    if (wrong := mistake(draft.job.spec.model)) is None:
        return False
    _fail(draft, "InvalidManifest", wrong)
    return True


def _never_began(draft: Draft) -> bool:
    """Whether the job fails since its training did not begin in time."""
    limit, started = draft.job.spec.pre_running_deadline_seconds, draft.value("start_time")
    status = draft.job.status
    if limit is None or status.running_time is not None or status.phase == "Running" or status.step is not None:
        return False
    left = started.timestamp() + limit - draft.now
    if left > 0:
        draft.plan.wake(left)
        return False
    ready = draft.conditions.get("PodsReady")
    why = "" if ready is None else f"; {ready.reason}: {ready.message}"
    words = f"training has not begun within preRunningDeadlineSeconds ({limit} s){why}"
    _fail(draft, "PreRunningDeadlineExceeded", words)
    return True


def _apply_children(draft: Draft) -> None:
    job = draft.job
    draft.plan.apply += [owned.service_account(job), owned.config_map(job)]
    for child in (owned.disruption_budget(job), *owned.network_policies(job, draft.seen.defaults.metrics_from)):
        found = draft.seen.children.get((child["kind"], child["metadata"]["name"]))
        if not ownership.right(child, found):
            draft.plan.apply.append(child)


def _suspects(draft: Draft) -> frozenset[str]:
    """Nodes that something is wrong with: few at any time, so reading their Leases is cheap.

    Nobody tells us that a pod which has just been placed is not heard, so we wake up to look for ourselves: its node
    may be lost before the first word.
    """
    seen, now = draft.seen, draft.now
    found = set(draft.avoided)
    contact, progress = seen.contact, seen.contact.progress
    trained = progress is not None or draft.job.status.step is not None
    members = draft.members
    late: list[tuple[Pod, float]] = []
    for pod in seen.coordinators:
        unheard = contact.lost_since is not None or (contact.answered is None and trained)
        if pod.active and unheard:
            late.append((pod, 2.0))
    for pod in seen.workers:
        if pod.terminal:
            continue
        if trained and pod.uid not in members:
            late.append((pod, 5.0))
        if pod.deleting_until is not None:
            late.append((pod, pod.deleting_until - _begun(pod)))
    for pod, patience in late:
        left = _begun(pod) + patience - now
        if pod.node and left < 0:
            found.add(pod.node)
        elif pod.node:
            draft.plan.wake(left + 0.1)
    return frozenset(found)


def _begun(pod: Pod) -> float:
    return pod.running_since or pod.created


def _suspend(draft: Draft) -> None:
    """Workers leave at the end of their step; the coordinator stays until they have left."""
    draft.conditions.set(
        "Suspended", True, "JobSuspended", "workers are removed and progress is kept: set suspend to false to go on"
    )
    remove_workers(draft)
    left = [pod for pod in draft.seen.workers if not pod.terminal]
    if not left:
        remove_coordinators(draft)
    diagnostics.tell_progress(draft)
    draft.conditions.clear("PodsReady", "Suspended", f"{len(left)} workers are leaving" if left else "no workers")
    draft.conditions.clear("Rescaling", "Suspended", "the job is suspended")
    draft.fields |= {
        "phase": "Pending" if left else "Suspended",
        "start_time": None,
        "running_time": None,
        "eta": None,
        "eta_seconds": None,
        "workers": f"{len(left)}/0",
        "ready_replicas": len(draft.ready) if left else 0,
    }


def _end(draft: Draft) -> bool:
    """Whether training has ended, well or badly. A worker's word counts even if no coordinator is left to say it."""
    completed = draft.ended(ExitClass.COMPLETED)
    progress = draft.seen.contact.progress
    result = None if progress is None else progress.result
    if completed and (result is None or result.outcome != "completed"):
        result = exit_reason.parse_result(completed[0]) or result
    if result is not None and result.outcome == "completed":
        _succeed(draft, result)
        return True
    # A failure is judged once. That of a template on trial does not count for the job when another worker of the
    # template trains later.
    judged = set(draft.job.status.failed_workers)
    ended = [pod for pod in draft.ended(ExitClass.FATAL, ExitClass.INVALID) if pod.number not in judged]
    workers = [pod for pod in ended if not of_no_account(draft, pod)]
    policy = draft.job.spec.pod_failure_policy
    fatal = [pod for pod in workers if exit_reason.ending(pod, policy) is ExitClass.FATAL]
    if fatal:
        _fail(
            draft,
            "PodFailurePolicy",
            f"podFailurePolicy ends the job: {fatal[0].name}: {exit_reason.explain(fatal[0])}",
        )
        return True
    invalid = [*workers, *filter(_is_invalid, draft.seen.coordinators)]
    if invalid:
        _fail(draft, "InvalidManifest", f"{invalid[0].name} can't run the job: {exit_reason.explain(invalid[0])}")
        return True
    if result is not None and result.outcome == "failed":
        _fail(draft, "TrainingFailed", result.message or "training ended without a model")
        return True
    return False


def _is_invalid(pod: Pod) -> bool:
    return pod.terminal and exit_reason.ending(pod) is ExitClass.INVALID


def _succeed(draft: Draft, result: Result) -> None:
    job = draft.job
    metric = headline(result.metrics)
    value = None if metric is None else of_model(result.metrics, metric)
    words = result.message or f"training is complete after {result.step} steps"
    draft.conditions.set("Complete", True, "TrainingComplete", words)
    draft.conditions.clear("Rescaling", "Complete", "training is complete")
    draft.conditions.clear("Restarting", "Complete", "training is complete")
    draft.conditions.clear("PodsReady", "Complete", "training is complete")
    diagnostics.tell_progress(draft)
    if (
        job.spec.checkpoint is not None and not job.spec.torchrun
    ):  # the last one is saved before training is said to be complete
        draft.conditions.set("CheckpointAvailable", True, "Saved", f"step {result.step} is saved")
    draft.fields |= {
        "phase": "Succeeded",
        "completion_time": moment(draft.now),
        "metrics": {name: float(f"{value:.6g}") for name, value in sorted(result.metrics.items())[:MOST_METRICS]},
        "step": None if job.spec.torchrun else result.step,
        "epoch": None if job.spec.torchrun else result.epoch,
        "eta": None,
        "eta_seconds": None,
        "workers": None,
    }
    if metric is not None:
        draft.fields["metric"] = f"{metric}={value:.4g}"
    if result.model is not None:
        folder = checkpoint_uri(job.spec.checkpoint, job.namespace, job.name)
        path = f"{folder or checkpoint_folder(job.namespace, job.name)}/{result.model}"
        draft.fields["model"] = TrainedModel(path=path, metric=metric, value=value, step=_step_of_model(result))
    draft.event("Normal", "Completed", words)
    _after_end(draft)


def _step_of_model(result: Result) -> int:
    """Of the weights that are published: an older worker tells only the last step."""
    return result.step if result.model_step is None else result.model_step


def _fail(draft: Draft, reason: str, message: str) -> None:
    draft.conditions.set("Failed", True, reason, message)
    for type in ("Rescaling", "Restarting", "PodsReady"):
        draft.conditions.clear(type, "Failed", "the job has failed")
    draft.fields |= {"phase": "Failed", "completion_time": moment(draft.now)}
    draft.fields |= {"eta": None, "eta_seconds": None, "workers": None, "ready_replicas": 0}
    _after_end(draft)


def _after_end(draft: Draft) -> None:
    """Pods that have ended stay for their logs until the TTL; whatever still runs is brought to its end."""
    done: datetime = draft.value("completion_time") or moment(draft.now)
    draft.fields["completion_time"] = done
    failed, ended = draft.conditions.true("Failed"), done.timestamp()
    diagnostics.tell_changes(draft)
    running = [pod for pod in draft.seen.workers if not pod.terminal or pod.lingers]
    for pod in running:
        if failed or pod.phase == "Pending" or draft.now - ended > LINGER or draft.seen.lost(pod.node, draft.now):
            draft.delete(pod)
    if not running or draft.now - ended > LINGER:
        if failed or not hear_out(draft, ended):
            remove_coordinators(draft)
    else:
        draft.plan.wake(ended + LINGER + 1 - draft.now)
    draft.fields["replicas"] = len(draft.active)
    ttl = draft.job.spec.ttl_seconds_after_finished
    if ttl is not None and draft.now >= ended + ttl:
        draft.plan.remove_job = True
    elif ttl is not None:
        draft.plan.wake(ended + ttl - draft.now)


def _finish(draft: Draft) -> Plan:
    job, plan = draft.job, draft.plan
    avoided = [AvoidedNode(name=name, since=moment(since)) for name, since in sorted(draft.avoided.items())]
    plan.status = job.status.model_copy(
        update={
            **draft.fields,
            "avoided_nodes": avoided,
            "conditions": draft.conditions.list(),
            "observed_generation": job.generation,
        }
    )
    # The coordinator first: workers that start before it have to try again.
    plan.create.sort(key=lambda pod: pod["metadata"]["labels"][naming.ROLE] != naming.COORDINATOR)
    for type, warns in (("PodsReady", False), ("Restarting", True), ("Failed", True)):
        condition = draft.conditions.changed(type)
        problem = condition is not None and (condition.status == "True") == warns
        if condition is not None and problem and condition.reason not in QUIET:
            draft.event("Warning", condition.reason, condition.message)
    rescaling = draft.conditions.changed("Rescaling")
    if rescaling is not None and rescaling.reason in STOPPED:
        draft.event("Warning", rescaling.reason, rescaling.message)
    suspended = draft.conditions.changed("Suspended")
    if suspended is not None:
        draft.event("Normal", suspended.reason, suspended.message)
    return plan


QUIET = ("WorkersStarting", "CoordinatorNotReached", "Complete", "Failed", "Suspended", ownership.LEAVING)
"""Reasons that every job passes through: no news."""
