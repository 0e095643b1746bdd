"""Nodes that are about to go, and the workers on them.

A cordon is one way to say so. Autoscalers don't cordon, they taint:
https://karpenter.sh/docs/concepts/disruption/ and
https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/utils/taints/taints.go.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from adaptrain_api.training.workers import Toleration

from adaptrain_operator.core.job import diagnostics
from adaptrain_operator.core.job.context import Draft
from adaptrain_operator.core.observed import Pod, Taint

CORDON = "node.kubernetes.io/unschedulable"
REMOVED = frozenset(
    {
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",  # until Karpenter 1.0
        "ToBeDeletedByClusterAutoscaler",
        "DeletionCandidateOfClusterAutoscaler",
        "cloud.google.com/impending-node-termination",
        "node.cloudprovider.kubernetes.io/shutdown",
        "node.kubernetes.io/out-of-service",
    }
)
REMOVED_PREFIX = "aws-node-termination-handler/"
LOST = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
"""Taints of nodes that are lost rather than about to go: their Leases say more."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Why a node is about to go."""

    taint: str
    """Key of the taint that says so."""

    @property
    def certain(self) -> bool:
        """Whether somebody removes it or its pods: a cordon alone may be all that its author wants."""
        return self.taint != CORDON


def leaving(draft: Draft, node: str | None) -> Leaving | None:
    """Why a node is about to go, or to evict the job's workers; None: it isn't, as far as is known."""
    known = None if draft.seen.nodes is None or node is None else draft.seen.nodes.get(node)
    if known is None:
        return None
    defaults = [Toleration.model_validate(one) for one in draft.seen.defaults.tolerations]
    tolerations = [*draft.job.spec.workers.tolerations, *defaults]
    for taint in known.taints:
        if taint.key in REMOVED or taint.key.startswith(REMOVED_PREFIX):
            return Leaving(taint.key)
        if taint.effect == "NoExecute" and taint.key not in LOST and not _tolerated(taint, tolerations):
            return Leaving(taint.key)
    cordoned = known.cordoned or any(taint.key == CORDON for taint in known.taints)
    return Leaving(CORDON) if cordoned else None


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    """Whether a taint is tolerated for ever."""
    return any(
        one.toleration_seconds is None
        and one.key in (None, "", taint.key)
        and one.effect in (None, taint.effect)
        and (one.operator == "Exists" or (one.value or "") == taint.value)
        for one in tolerations
    )


def to_move(draft: Draft) -> set[str]:
    """Uids of workers that leave their nodes as soon as one more worker takes part elsewhere."""
    return set() if diagnostics.single_node(draft) else {pod.uid for pod in _held(draft)}


def _held(draft: Draft) -> list[Pod]:
    """Workers on nodes that are about to go, whose eviction the disruption budget forbids, since the job is at
    ``min``."""
    ready = draft.ready
    if not draft.fresh or not 0 < len(ready) <= draft.job.spec.workers.min:
        return []
    return [pod for pod in ready if leaving(draft, pod.node) is not None]


def leave_first(draft: Draft) -> None:
    """Workers whose claim only one node can mount have no successor elsewhere while they run: they leave at the end of
    their step, and save."""
    if not diagnostics.single_node(draft):
        return
    for pod in _held(draft):
        why = leaving(draft, pod.node)
        if why is not None and why.certain:
            draft.delete(pod)
            words = (
                f"{pod.name} leaves node {pod.node}, which is about to go ({why.taint}), with the claim that it holds"
            )
            draft.event("Normal", "WorkerRemoved", words)


def avoided(draft: Draft) -> set[str]:
    """Nodes that new pods keep away from: silent ones, and those of the job's pods that are about to go, since a job
    may tolerate their taints."""
    pods = (*draft.seen.workers, *draft.seen.coordinators)
    nodes = {pod.node for pod in pods if pod.node is not None and not pod.terminal}
    return {*draft.avoided, *(node for node in nodes if leaving(draft, node) is not None)}


def needlessly_kept_away(draft: Draft, pod: Pod) -> bool:
    """Whether a pod without a node keeps away from one that is well again."""
    return pod.node is None and any(
        node not in draft.avoided and leaving(draft, node) is None for node in pod.avoided_nodes
    )


def tell(draft: Draft) -> None:
    """The Rescaling condition while workers move."""
    moving = to_move(draft)
    for pod in draft.active:
        why = leaving(draft, pod.node)
        if why is not None and pod.uid in moving:
            draft.conditions.set(
                "Rescaling",
                True,
                "NodeLeaving",
                f"node {pod.node} is about to go ({why.taint}): {pod.name} leaves it once another worker takes part",
            )
            return
