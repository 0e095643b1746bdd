"""A worker's own failures: counted against ``maxRestarts`` and backed off, so that a bug is not retried for ever."""

from adaptrain_api.training.failures import MOST_STARTS

from adaptrain_operator.core.job import exit_reason, starts
from adaptrain_operator.core.job.context import Draft, finished
from adaptrain_operator.core.observed import Pod, moment

SAME_INCIDENT = 5.0
"""Workers of one epoch that meet the same bug end within moments of each other: that is one failure."""
FORGIVEN_AFTER = 600.0
"""Seconds of training after which earlier failures are forgotten."""
LONGEST_BACKOFF = 60.0


def count_failures(draft: Draft) -> Pod | None:
    """Count new failures; the newest failed worker, if any ever failed and is still there.

    The status keeps the numbers of the failed workers that were counted, and a number is used once: so no pod counts
    twice, whichever operator looks at it, whatever its clock says.
    """
    restarts = draft.job.status.restarts or 0
    recorded = draft.job.status.last_failure_time
    last = None if recorded is None else recorded.timestamp()
    progress = draft.seen.contact.progress
    training = draft.fresh and progress is not None and progress.state == "running"
    if restarts and last is not None and training and draft.now - last > FORGIVEN_AFTER:
        restarts = 0
    failed = draft.ended(*exit_reason.BAD)
    counted = set(draft.job.status.failed_workers)
    if not counted and last is not None:
        counted |= {pod.number for pod in failed}  # by an operator that did not keep the numbers
    for pod in reversed(failed):
        if pod.number in counted:
            continue
        if not any(_one_incident(pod, other) for other in failed if other.number in counted):
            restarts += _count(draft, pod)
            last = finished(pod)
        counted.add(pod.number)
    newest = {max(counted)} if counted else set()
    draft.fields["failed_workers"] = sorted(counted & {pod.number for pod in failed} | newest)
    draft.fields["restarts"] = restarts
    draft.fields["last_failure_time"] = None if last is None else moment(last)
    return next((pod for pod in failed if not starts.of_no_account(draft, pod)), None)


def _count(draft: Draft, pod: Pod) -> int:
    """What a failure costs of ``maxRestarts``."""
    policy = draft.job.spec.pod_failure_policy
    if starts.of_no_account(draft, pod):
        starts.count_start(draft, pod)
        return 0
    # What init containers wait for (a repository, a package index) may come; a rule that says Count means it.
    own = pod.exit is not None and pod.exit.init_container is None
    ruled = policy is not None and pod.exit is not None and policy.action(pod.exit.code) is not None
    if starts.never_trained(draft) and own and not ruled:
        starts.count_start(draft, pod)
    return 1


def _one_incident(pod: Pod, counted: Pod) -> bool:
    return pod.created <= finished(counted) and abs(finished(pod) - finished(counted)) <= SAME_INCIDENT


def backoff_until(draft: Draft) -> float:
    """When failed workers may be replaced: after 1, 2, 4, … seconds."""
    times, last = max(draft.value("restarts"), starts.failed_starts(draft)), draft.value("last_failure_time")
    if not times or last is None:
        return 0.0
    # Ends are kept in whole seconds, so a second is added for what was cut off.
    return float(last.timestamp() + 1.0 + min(LONGEST_BACKOFF, 2.0 ** min(times - 1, 10)))


def too_many(draft: Draft, failed: Pod) -> tuple[str, str] | None:
    """Why no other worker is tried: reason and message."""
    restarts, most = draft.value("restarts"), draft.job.spec.max_restarts
    last = f"the last one, {failed.name}: {exit_reason.explain(failed)}"
    if restarts > most:
        return "TooManyFailures", f"workers failed {restarts} times, and maxRestarts is {most}; {last}"
    if starts.never_trained(draft) and (count := starts.failed_starts(draft)) >= MOST_STARTS:
        return "StartFailed", f"no worker came so far as to train: {count} in a row failed alike; {last}"
    return None


def tell_restarts(draft: Draft, failed: Pod | None, until: float) -> None:
    """The Restarting condition."""
    restarts, most = draft.value("restarts"), draft.job.spec.max_restarts
    if failed is not None and draft.now < until:
        draft.conditions.set(
            "Restarting",
            True,
            "WorkerFailed",
            f"{failed.name} failed ({restarts} of {most} restarts used) and is replaced in a moment:"
            f" {exit_reason.explain(failed)}",
        )
        return
    if draft.conditions.true("Restarting") and draft.fresh and len(draft.ready) >= draft.job.spec.wanted_workers:
        draft.conditions.set("Restarting", False, "Recovered", f"{restarts} of {most} restarts used")
