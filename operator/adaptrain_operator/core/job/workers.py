"""Which workers the job has: replacing, resizing and rolling are all the same question, how many and which."""

from adaptrain_operator.core.job import coordinator, diagnostics, drain, exit_reason, starts
from adaptrain_operator.core.job.context import OFTEN, PATIENCE, QUICK, Draft, finished, quick
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.objects import pods
from adaptrain_operator.core.observed import Pod

KEEP_FAILED = 3
"""Workers that failed by themselves and stay, for their logs."""
RETURN_SECONDS = 60.0
"""A worker that its coordinator knows nothing of is not missed before the coordinator has run for so long."""
LEASE_UNREADABLE = 300.0
"""Seconds that a silent node is avoided when its Lease can't be read."""


def decide_workers(draft: Draft, blocked: bool, backoff_until: float) -> None:
    """Make and remove worker pods until those that the user wants take part in training."""
    _forget_renewed_nodes(draft)
    _drop_lost(draft)
    _drop_unheard(draft)
    _drop_needlessly_kept_away(draft)
    drain.leave_first(draft)
    hindered = coordinator.hindered(draft)
    if hindered:
        _let_go(draft)
    stale, impatient = _stale(draft)
    wanted = draft.job.spec.wanted_workers
    active = draft.active
    surge = _surge(draft, stale, impatient)
    surplus = len(active) - wanted - surge
    if surplus > 0 and (draft.job.spec.search is None or _knows_who_is_idle(draft)):
        for pod in _victims(draft, stale)[:surplus]:
            draft.delete(pod)
            draft.event("Normal", "WorkerRemoved", f"{pod.name} leaves: {wanted} workers are wanted")
    elif stale:
        _roll(draft, stale, impatient)
    _clean_ended(draft, backoff_until)
    if not blocked and not hindered:
        left = stale & {pod.uid for pod in draft.active}
        _create(draft, wanted + (surge if left else 0), backoff_until)


def _surge(draft: Draft, stale: set[str], impatient: bool) -> int:
    """Workers beyond those that are wanted, while others are replaced by them."""
    old_leave_first = impatient and (draft.job.spec.workers.max_unavailable or starts.stopped(draft))
    return int(bool(stale) and not old_leave_first)


def remove_workers(draft: Draft) -> None:
    """All of them leave at the end of their step."""
    for pod in draft.seen.workers:
        if pod.active or pod.lingers:
            draft.delete(pod)
        _force_if_stuck(draft, pod)


def _let_go(draft: Draft) -> None:
    """Workers that have never trained hold nothing while there can be no coordinator. Those of a training go on."""
    if draft.begun:
        return
    since = [pod.created for pod in draft.seen.coordinators if pod.active]
    since += [] if draft.seen.problem is None else [draft.seen.problem.since]
    left = max(since) + PATIENCE - draft.now
    if left > 0:
        draft.plan.wake(left)
        return
    for pod in draft.active:
        draft.delete(pod)


def _forget_renewed_nodes(draft: Draft) -> None:
    """A silent node is used again once its Lease was renewed after the silence."""
    for record in draft.job.status.avoided_nodes:
        since = record.since.timestamp()
        lease = draft.seen.leases.get(record.name)
        known = draft.seen.nodes is None or record.name in draft.seen.nodes
        renewed = lease is not None and lease.renewed_after(since)
        if known and not renewed and (lease is not None or draft.now - since < LEASE_UNREADABLE):
            draft.avoided.setdefault(record.name, since)
            draft.plan.wake(5.0)


def _drop_lost(draft: Draft) -> None:
    """Silent workers are not waited for: neither for the node controller nor for their grace."""
    progress = draft.seen.contact.progress
    silent = set() if progress is None or not draft.fresh else {one.id for one in progress.silent}
    members = draft.members
    for pod in draft.seen.workers:
        if pod.terminal:
            continue
        _force_if_stuck(draft, pod)
        if pod.deleting:
            continue
        missed = pod.uid in silent and pod.uid not in members
        # A coordinator that came after the loss never met this worker, so it can't miss it.
        unmet = draft.fresh and pod.uid not in members and pod.node and draft.seen.lost(pod.node, draft.now)
        if not missed and not unmet:
            continue
        draft.delete(pod, grace=0)
        if pod.node:
            draft.avoided.setdefault(pod.node, draft.now)
        draft.event("Warning", "WorkerSilent", f"{pod.name} on node {pod.node} fell silent; another takes its place")


def _drop_unheard(draft: Draft) -> None:
    """A worker that runs and doesn't report, or doesn't end its preparations, is hung: since its start, or since there
    was no coordinator to miss it."""
    progress = draft.seen.contact.progress
    coordinator = next((pod for pod in draft.seen.coordinators if pod.number == draft.seen.contact.number), None)
    if progress is None or not draft.fresh or progress.state == "done" or coordinator is None:
        return
    preparing = set(progress.preparing)
    heard = draft.members | (set(progress.joining) - preparing) | {one.id for one in progress.silent}
    for pod in draft.active:
        if pod.uid in heard or pod.running_since is None or coordinator.running_since is None:
            continue
        allowed = float(draft.job.spec.workers.start_deadline_seconds)
        until = max(pod.running_since + allowed, coordinator.running_since + RETURN_SECONDS)
        if draft.now < until:
            draft.plan.wake(until - draft.now)
            continue
        draft.delete(pod)
        what = "prepared its model and data" if pod.uid in preparing else "reported to the coordinator"
        draft.event(
            "Warning",
            "WorkerUnheard",
            f"{pod.name} runs and has not {what} within workers.startDeadlineSeconds "
            f"({allowed:.0f} s); another takes its place",
        )


def _force_if_stuck(draft: Draft, pod: Pod) -> None:
    """A deleted pod on a lost node has nobody to confirm its end."""
    if pod.deleting_until is None or pod.grace == 0:
        return
    if draft.seen.lost(pod.node, draft.now) and draft.now > pod.deleting_until:
        draft.delete(pod, grace=0)
    elif draft.seen.lost(pod.node, draft.now):
        draft.plan.wake(pod.deleting_until - draft.now + 0.5)


def _drop_needlessly_kept_away(draft: Draft) -> None:
    """Where a pod may go is fixed when it is made: one that waits for a place is made anew once its node is back."""
    for pod in draft.active:
        if drain.needlessly_kept_away(draft, pod):
            draft.delete(pod, grace=0)


def _stale(draft: Draft) -> tuple[set[str], bool]:
    """Uids of workers that another should replace, and whether that is worth losing one for a moment.

    Besides pods of an old template these are those on nodes that are about to go, if their eviction is forbidden.
    """
    wanted = pods.template_hash(draft.job)
    commit = _agree_on_commit(draft)
    outdated = {
        pod.uid
        for pod in draft.active
        if pod.template_hash != wanted or (pod.source_commit is not None and pod.source_commit != commit)
    }
    return outdated | drain.to_move(draft), bool(outdated)


def _agree_on_commit(draft: Draft) -> str | None:
    """The commit of the script's source that all workers run: the first that one of them got."""
    known: str | None = draft.value("source_commit")
    if known is None:
        found = (pod.source_commit for pod in draft.active if pod.source_commit is not None)
        if (known := next(found, None)) is not None:
            draft.fields["source_commit"] = known
    return known


def _knows_who_is_idle(draft: Draft) -> bool:
    """Whether a search's coordinator says which evaluators have a trial. One that takes over doesn't at first, while
    those that have one may not be members yet."""
    progress = draft.seen.contact.progress
    search = None if progress is None else progress.search
    return draft.fresh and search is not None and search.evaluators is not None


def _victims(draft: Draft, stale: set[str]) -> list[Pod]:
    """Who goes first: whoever doesn't take part, has nothing to do, is on a node that is being emptied, is outdated,
    is newest."""
    members, idle = draft.members, draft.idle
    return sorted(
        draft.active,
        key=lambda pod: (
            pod.node is not None,
            pod.phase != "Pending",
            pod.uid in members,
            pod.uid not in idle,
            drain.leaving(draft, pod.node) is None,
            pod.uid not in stale,
            -pod.number,
        ),
    )


def _roll(draft: Draft, stale: set[str], impatient: bool) -> None:
    """Replace one: whoever takes part leaves only when its successor takes part, or can't for want of room."""
    members, now = draft.members, draft.now
    idle = [pod for pod in draft.active if pod.uid in stale and _idle(draft, pod)]
    for pod in idle:
        draft.delete(pod)
    if idle or not draft.fresh:
        return
    spec = draft.job.spec.workers
    new = [pod for pod in draft.active if pod.uid not in stale]
    old = [pod for pod in draft.active if pod.uid in stale]
    ready = [pod for pod in draft.active if pod.uid in members]
    trial = starts.on_trial(draft)
    if trial and starts.failed_starts(draft):
        return
    if spec.max_unavailable and impatient:
        for _ in range(len(ready) - max(0, spec.wanted - spec.max_unavailable)):
            _replace(draft, old)
        return
    training = [pod for pod in old if pod.uid in members]
    if len(ready) > spec.wanted and (not trial or len(training) > spec.wanted):
        # Of a template on trial nobody leaves for its workers, but there may be more of the old one than are wanted.
        _replace(draft, old)
        return
    waiting = [pod for pod in new if pod.uid not in members]
    problem = draft.seen.problem
    # Only want of room is cured by leaving: an image that can't be pulled would cost one worker after the other.
    since = [pod.created for pod in waiting if diagnostics.wants_room(pod)]
    if problem is not None and problem.reason == "QuotaExceeded":
        since.append(problem.since)
    if not impatient or not since or len(ready) <= spec.min or (trial and len(ready) < spec.wanted):
        return
    left = min(since) + PATIENCE - now
    if left > 0:
        draft.plan.wake(left)
    elif len(ready) + len(waiting) > spec.min:
        _replace(draft, old)


def _replace(draft: Draft, old: list[Pod]) -> None:
    members = draft.members
    old = [pod for pod in old if pod.uid not in draft.gone]
    if not old:
        return
    first = min(old, key=lambda pod: (pod.uid in members, drain.leaving(draft, pod.node) is None, pod.number))
    draft.delete(first)
    why = drain.leaving(draft, first.node)
    place = "one of the new template" if why is None else f"node {first.node} is about to go ({why.taint}), and another"
    draft.event("Normal", "WorkerReplaced", f"{first.name} leaves: {place} takes its place")


def _idle(draft: Draft, pod: Pod) -> bool:
    """It takes no part in training and won't soon, so that removing it costs nothing."""
    if pod.phase == "Pending":
        return True
    if not draft.fresh or pod.uid in draft.members:
        return False
    up = [one.running_since for one in (pod, *draft.seen.coordinators) if one.active and one.running_since is not None]
    return bool(up) and draft.now - max(up) > PATIENCE


def _clean_ended(draft: Draft, backoff_until: float) -> None:
    for pod in draft.ended(ExitClass.DISRUPTED):
        if not quick(pod) or draft.now - finished(pod) > 60:
            draft.clear_away(pod)
    if draft.now >= backoff_until:
        for index, pod in enumerate(draft.ended(*exit_reason.BAD)):
            if index >= KEEP_FAILED or pod.lingers:
                draft.clear_away(pod)


def _create(draft: Draft, size: int, backoff_until: float) -> None:
    job, seen, now = draft.job, draft.seen, draft.now
    missing = size - len(draft.active)
    if now < backoff_until:
        failed = draft.value("last_failure_time")
        since = now if failed is None else failed.timestamp()
        missing -= sum(finished(pod) >= since for pod in draft.ended(*exit_reason.BAD))
        draft.plan.wake(backoff_until - now)
    if missing <= 0:
        return
    if seen.problem is not None and now < seen.problem.retry_at:
        draft.plan.wake(seen.problem.retry_at - now)
        return
    ended = [finished(pod) for pod in draft.quickly_disrupted]
    if len(ended) >= OFTEN and now < max(ended) + QUICK:
        draft.plan.wake(max(ended) + QUICK - now)
        return
    first = max([draft.value("next_worker") or 0, *(pod.number + 1 for pod in seen.workers)])
    image, commit = job.spec.image or seen.default_image, draft.value("source_commit")
    one_node, avoided = diagnostics.shares_node(draft), drain.avoided(draft)
    for number in range(first, first + missing):
        pod = pods.worker_pod(job, number, image, avoided, commit, seen.defaults, one_node)
        draft.plan.create.append(pod)
    draft.fields["next_worker"] = first + missing
    names = ", ".join(pod["metadata"]["name"] for pod in draft.plan.create[-missing:])
    draft.event("Normal", "WorkersCreated", f"made {names}" if missing <= 5 else f"made {missing} workers", made=True)
