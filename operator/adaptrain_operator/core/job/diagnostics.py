"""What a user is told: conditions, phase and the columns of ``kubectl get``."""

import re
from typing import Literal

from adaptrain_api.contracts.coordinator_api import PhaseProgress, foremost, headline
from adaptrain_api.search.algorithms import ONE_SHOT
from adaptrain_api.search.pool import leaves_weights
from adaptrain_api.text import printable
from adaptrain_api.training.status import PhaseStatus, RecentChange

from adaptrain_operator.core import naming
from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.job.context import OFTEN, Draft
from adaptrain_operator.core.objects import placement
from adaptrain_operator.core.observed import Pod, moment
from adaptrain_operator.core.text import duration

PHASE_STATES: dict[str, Literal["Pending", "Running", "Complete"]] = {
    "pending": "Pending",
    "running": "Running",
    "complete": "Complete",
}
PHASE_METRICS_BYTES = 2048
"""Of the metrics of one phase in a status."""
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
START_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
SINGLE_NODE = ("ReadWriteOnce", "ReadWriteOncePod")
ROOM = ("Insufficient", "Too many pods", "in-use", "free ports", "anti-affinity", "topology spread", "volume count")
"""What the scheduler says of nodes that have no room."""
CHANGES_KEPT = 10
LATE = 60.0
"""Seconds after which a worker that runs and has not joined is named."""
UNPREPARED = 15.0
"""Seconds after which a worker is named whose node can't mount what its files are to come from: attaching a volume may
take as long."""
PROVISIONED = 30.0
"""Seconds that a claim is given to get its volume before a pod that waits for it is called unschedulable."""


def claim_problem(draft: Draft) -> tuple[str, str] | None:
    """Why the checkpoint volume can't be used, seen before any pod is made."""
    claim, spec = draft.seen.claim, draft.job.spec
    volume = spec.checkpoint.volume if spec.checkpoint is not None else None
    if claim is None or volume is None or not claim.known:
        return None
    name = volume.persistent_volume_claim.claim_name
    if not claim.exists:
        return (
            "ClaimNotFound",
            f'there is no PersistentVolumeClaim "{name}" in namespace {draft.job.namespace}:'
            " create it, or change checkpoint.volume",
        )
    modes, mounting = set(claim.access_modes), _mounting(draft)
    if mounting <= 1 or not modes or modes - set(SINGLE_NODE):
        return None
    most = "workers.max" if spec.search is None else "parallelism.max"
    kept_anyway = spec.search is None or spec.of_search("algorithm").get("name") in ONE_SHOT
    no_weights = "" if kept_anyway else ", or promote.weights to false"
    if modes == {"ReadWriteOncePod"}:
        return (
            "ClaimOfOnePod",
            f'PersistentVolumeClaim "{name}" is ReadWriteOncePod, so only one pod can mount it, but {mounting} pods'
            f" need it: use a ReadWriteMany claim, or set {most} to 1{no_weights}",
        )
    if placement.apart(draft.job):
        return (
            "ClaimOfOneNode",
            f'PersistentVolumeClaim "{name}" is ReadWriteOnce, so only one node can mount it, but hostNetwork or'
            f" affinity puts each of the workers on a node of its own, and {most} is {spec.workers.max}: use a"
            f" ReadWriteMany claim, let workers share a node, or set {most} to 1{no_weights}",
        )
    return None


def single_node(draft: Draft) -> bool:
    """Whether only one node at a time can mount the checkpoint claim."""
    claim = draft.seen.claim
    if claim is None or not claim.known or not claim.exists:
        return False
    modes = set(claim.access_modes)
    return bool(modes) and not modes - set(SINGLE_NODE) and _mounting(draft) > 0


def shares_node(draft: Draft) -> bool:
    """Whether all pods that mount the checkpoint claim must be on one node: those that there are for a moment, while
    one replaces another, as well."""
    claim = draft.seen.claim
    return claim is not None and "ReadWriteOnce" in claim.access_modes and single_node(draft)


def _mounting(draft: Draft) -> int:
    """Pods that mount the checkpoint claim, at most."""
    spec = draft.job.spec
    if spec.search is None:
        return spec.workers.max
    return 1 + (spec.workers.max if leaves_weights(spec) else 0)


def pod_problem(draft: Draft, pod: Pod) -> tuple[str, str] | None:
    """Why a pod doesn't start, and what to do about it. What every pod passes through is no problem yet."""
    if pod.waiting is not None and pod.waiting[0] in IMAGE_REASONS:
        return (
            "ImagePullFailed",
            f'its image "{pod.image}" can\'t be pulled ({pod.waiting[0]}: {_short(pod.waiting[1])}):'
            " check image and imagePullSecrets",
        )
    if pod.waiting is not None and pod.waiting[0] in START_REASONS:
        return "ContainerNotStarted", f"its container can't be started ({pod.waiting[0]}: {_short(pod.waiting[1])})"
    if pod.unschedulable is not None and pod.node is None:
        left = pod.created + PROVISIONED - draft.now
        if "unbound" in pod.unschedulable and left > 0:
            draft.plan.wake(left)
            return None
        return "Unschedulable", unschedulable(pod.unschedulable)
    return None


def wants_room(pod: Pod) -> bool:
    """Whether a pod has no node, as far as is known for want of room: no selector matches sooner if others leave."""
    return pod.node is None and (pod.unschedulable is None or any(words in pod.unschedulable for words in ROOM))


def unschedulable(message: str) -> str:
    """The scheduler's message without its accounting of preemption, and with what to do.

    >>> unschedulable("0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available.")
    '0/2 nodes have nvidia.com/gpu free: add such nodes, free some, or ask for less in workers.resources'
    """
    text = message.split(" preemption:")[0].strip().rstrip(".")
    match = re.fullmatch(r"0/(\d+) nodes are available: (\d+) Insufficient (\S+)", text)
    if match is not None and match.group(1) == match.group(2):
        what = match.group(3).rstrip(",")
        return (
            f"0/{match.group(1)} nodes have {what} free: add such nodes, free some, or ask for less in"
            " workers.resources"
        )
    if "Insufficient" in text:
        return f"{text}: add nodes, free some, or ask for less in workers.resources"
    if "taint" in text or "affinity" in text or "selector" in text:
        return f"{text}: check workers.nodeSelector, tolerations and affinity"
    return text or "no node was found for it yet"


def _short(text: str, limit: int = 300) -> str:
    return " ".join(printable(text).split())[:limit]


def tell_pods(draft: Draft, blocked: tuple[str, str] | None) -> None:
    """The PodsReady condition: how many take part, and what keeps the others."""
    if draft.unheard:
        return
    wanted = draft.job.spec.wanted_workers
    ready = {pod.uid for pod in draft.ready} if _known(draft) else set()
    head = f"{len(ready)} of {wanted} workers running"
    if blocked is not None and len(ready) < wanted:
        draft.conditions.set("PodsReady", False, blocked[0], f"{head}; {blocked[1]}")
        return
    for pod in draft.active:
        found = pod_problem(draft, pod)
        if found is not None and pod.uid not in ready:
            draft.conditions.set("PodsReady", False, found[0], f"{head}; worker {pod.number} is pending: {found[1]}")
            return
    if (stuck := _unprepared(draft, ready)) is not None:
        draft.conditions.set("PodsReady", False, "VolumesNotMounted", f"{head}; {stuck}")
        return
    if len(ready) >= wanted and (wanted or draft.fresh):
        draft.conditions.set("PodsReady", True, "AllWorkersRunning", head)
        return
    for pod in draft.seen.coordinators:
        found = pod_problem(draft, pod)
        if pod.active and found is not None:
            draft.conditions.set("PodsReady", False, found[0], f"{head}; the coordinator is pending: {found[1]}")
            return
    draft.conditions.set("PodsReady", False, *_waiting(draft, head))


def _unprepared(draft: Draft, ready: set[str]) -> str | None:
    """Which worker's node waits, perhaps for an object that is missing: the kubelet knows, and we may not read them.

    An image is only pulled after that, however long it takes.
    """
    wanted = _mounted(draft)
    for pod in draft.active:
        if not wanted or pod.node is None or pod.unprepared_since is None or pod.uid in ready:
            continue
        if (left := pod.unprepared_since + UNPREPARED - draft.now) > 0:
            draft.plan.wake(left)
            continue
        return (
            f"worker {pod.number} is pending: node {pod.node} has not mounted its volumes since"
            f" {moment(pod.unprepared_since):%H:%M:%S} UTC: check that there is {' and '.join(wanted)} in namespace"
            f" {draft.job.namespace}, else see kubectl describe pod {pod.name} -n {draft.job.namespace}"
        )
    return None


def _mounted(draft: Draft) -> list[str]:
    """The ConfigMaps and Secrets without which a worker can't be started, and where the job names them."""
    spec, found = draft.job.spec, []
    if spec.script is not None and spec.script.source is not None and spec.script.source.config_map is not None:
        found.append(f'ConfigMap "{spec.script.source.config_map.name}" (script.source)')
    for volume in spec.workers.volumes:
        for kind, held, key in (("ConfigMap", volume.config_map, "name"), ("Secret", volume.secret, "secretName")):
            if held is not None and not held.get("optional"):
                found.append(f'{kind} "{held.get(key)}" (workers.volumes "{volume.name}")')
    return found


def _waiting(draft: Draft, head: str) -> tuple[str, str]:
    started = [pod for pod in draft.active if pod.phase == "Running"]
    if not draft.fresh and started:
        return "CoordinatorNotReached", f"{head}; {len(started)} started, and their coordinator has not answered yet"
    silent = [pod for pod in started if draft.now - (pod.running_since or draft.now) >= LATE and _outside(draft, pod)]
    if silent:
        return "WorkerNotJoined", f"{head}; {_why_outside(draft, silent[0])}"
    for pod in started:
        if pod.running_since is not None and _outside(draft, pod):
            draft.plan.wake(pod.running_since + LATE - draft.now)
    if len(quick := draft.quickly_disrupted) >= OFTEN:
        last = f"one, {quick[0].name}: {exit_reason.explain(quick[0], 300)}"
        return (
            "WorkersTakenAway",
            f"{head}; {len(quick)} were taken away as soon as they were made, the last one, {last}",
        )
    return "WorkersStarting", f"{head}; {_starting(draft)}"


def _starting(draft: Draft) -> str:
    """What the first worker that has not started is waiting for, as far as its pod says."""
    pending = [pod for pod in draft.active if pod.phase == "Pending"]
    pulling = [pod for pod in pending if pod.node is not None and pod.unprepared_since is None]
    for pod in pulling:
        since = f"since {moment(pod.created):%H:%M:%S} UTC"
        return f"node {pod.node} pulls the image {pod.image} of worker {pod.number}, or starts it, {since}"
    for pod in pending:
        if pod.unschedulable is not None:
            return f"worker {pod.number} waits for the volume of its claim"
    progress = draft.seen.contact.progress
    for pod in draft.active:
        if progress is not None and draft.fresh and pod.uid in progress.preparing:
            since = f"since {moment(pod.running_since or draft.now):%H:%M:%S} UTC"
            return f"worker {pod.number} prepares {since}: it imports, reads its data, and tries its model"
    return "the others are being started"


def _outside(draft: Draft, pod: Pod) -> bool:
    """Whether the coordinator has not met a worker."""
    progress = draft.seen.contact.progress
    return progress is not None and draft.fresh and pod.uid not in {*draft.members, *progress.joining}


def _why_outside(draft: Draft, pod: Pod) -> str:
    since = f"worker {pod.number} has run since {moment(pod.running_since or draft.now):%H:%M:%S} UTC"
    remedy = f"see kubectl logs {pod.name} -n {draft.job.namespace}"
    if draft.job.spec.script is not None and not draft.job.spec.torchrun:
        remedy += "; a script joins in `with adaptrain.elastic.Elastic(…)`, one for torchrun needs launcher: torchrun"
    return f"{since} and has not joined the others: {remedy}"


def _known(draft: Draft) -> bool:
    """Whether the last answer still says something about who takes part."""
    return draft.seen.contact.progress is not None


def tell_checkpoint(draft: Draft) -> None:
    """The conditions CheckpointAvailable and, of a job that has none, Unsaved."""
    progress = draft.seen.contact.progress
    _tell_unsaved(draft)
    if draft.job.spec.checkpoint is None or progress is None:
        return
    step = progress.checkpoint_step
    saved = "" if step is None else f"step {step} is saved"
    if trouble := _short(progress.checkpoint_error or ""):
        message = f"{saved}; {trouble}" if saved else trouble
        draft.conditions.set("CheckpointAvailable", step is not None, "SavingFailed", message)
    elif saved:
        draft.conditions.set("CheckpointAvailable", True, "Saved", saved)


def _tell_unsaved(draft: Draft) -> None:
    """Tell, from the first decision on, that nothing of the training will be left."""
    spec = draft.job.spec
    if spec.checkpoint is not None or spec.search is not None or (spec.script is not None and spec.workers.volumes):
        return
    what = "its progress, and what its script writes, is" if spec.script is not None else "its model and progress are"
    message = (
        f"the job has no checkpoint: {what} lost when its workers end; give it checkpoint.volume or checkpoint.uri"
    )
    if not draft.conditions.true("Unsaved"):
        draft.event("Warning", "NoCheckpoint", message)
    draft.conditions.set("Unsaved", True, "NoCheckpoint", message)


def tell_progress(draft: Draft) -> None:
    """Numbers for the printer columns, rounded so that they don't change without need."""
    fields, progress = draft.fields, draft.seen.contact.progress
    spec = draft.job.spec.workers
    active = draft.active
    fields["replicas"] = len(active)
    fields["selector"] = f"{naming.JOB_NAME}={draft.job.name},{naming.ROLE}={naming.WORKER}"
    if draft.unheard:
        return
    ready = len(draft.ready) if _known(draft) else 0
    fields["ready_replicas"] = ready
    fields["workers"] = f"{ready}/{0 if draft.job.spec.suspend else spec.wanted}"
    behind = progress is not None and progress.step < (draft.job.status.step or 0)
    if draft.job.spec.torchrun:
        return  # what its script does, nobody is told
    if progress is None or (behind and (progress.state in ("waiting", "forming") or progress.step == 0)):
        # A coordinator that has just started, or has just taken over a running group, knows nothing yet; what the last
        # one said is nearer the truth.
        return
    fields["step"] = progress.step
    fields["epoch"] = progress.data_epoch
    fields["loss"] = None if progress.loss is None else float(f"{progress.loss:.4g}")
    fields["eta"] = None if progress.eta_seconds is None else duration(progress.eta_seconds)
    fields["eta_seconds"] = None if progress.eta_seconds is None else round(progress.eta_seconds)
    fields["goodput_ratio"] = None if progress.goodput is None else float(f"{progress.goodput:.3f}")
    fields["goodput"] = None if progress.goodput is None else f"{progress.goodput:.1%}"
    fields["skipped_steps"] = progress.skipped_steps or None
    fields["phases"] = [_phase(phase) for phase in progress.phases]
    metric = headline(progress.metrics)
    if metric is not None:
        fields["metric"] = f"{metric}={progress.metrics[metric]:.4g}"


def _phase(heard: PhaseProgress) -> PhaseStatus:
    metrics = {name: float(f"{value:.6g}") for name, value in foremost(heard.metrics, PHASE_METRICS_BYTES).items()}
    return PhaseStatus(
        name=heard.name,
        state=PHASE_STATES[heard.state],
        steps=heard.steps,
        epochs=heard.epochs,
        metrics=metrics,
        message=heard.message,
    )


def tell_changes(draft: Draft) -> None:
    """What happened to the workers as a group, once as an event, and the newest of it in the status."""
    progress = draft.seen.contact.progress
    if progress is None or not progress.recent_changes:
        return
    known = {change.change: change for change in draft.job.status.recent_changes}
    heard = {
        f"{progress.number}.{change.count}": RecentChange(
            change=f"{progress.number}.{change.count}",
            time=moment(change.time),
            message=_short(change.message),
            stall_seconds=None if change.stall is None else float(f"{change.stall:.3g}"),
        )
        for change in progress.recent_changes[-CHANGES_KEPT:]
    }
    for name, change in heard.items():
        if name not in known:
            cost = "" if change.stall_seconds is None else f"; workers stood still for {change.stall_seconds:.2g} s"
            draft.event("Normal", "MembershipChanged", change.message + cost)
    draft.fields["recent_changes"] = list((known | heard).values())[-CHANGES_KEPT:]
