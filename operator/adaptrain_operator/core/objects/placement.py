"""Where a job's pods may go."""

from collections.abc import Iterable

from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Job, Object

HOSTNAME = "kubernetes.io/hostname"


def node_loss(seconds: int) -> list[Object]:
    """How long the control plane waits before it evicts from a lost node: a backstop, silence is noticed sooner."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state in ("not-ready", "unreachable")
    ]


def spread(job: Job) -> Object:
    """Over nodes, where there is a choice: losing one should not lose the job."""
    return {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": naming.selector(job.name, naming.WORKER)},
    }


def avoid(affinity: Object, nodes: Iterable[str]) -> Object:
    """An affinity that also keeps away from some nodes. Terms are alternatives, so each one must say so."""
    nodes = sorted(nodes)
    if not nodes:
        return dict(affinity)
    unwanted = {"key": "metadata.name", "operator": "NotIn", "values": nodes}
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # matchFields takes one value per requirement, so every node is a requirement of its own.
    fields = [{**unwanted, "values": [node]} for node in nodes]
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or []), *fields]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return {**affinity, "nodeAffinity": node_affinity}


def rather_not(affinity: Object, node: str) -> Object:
    """An affinity that also prefers other nodes than one."""
    unwanted = {"matchExpressions": [{"key": HOSTNAME, "operator": "NotIn", "values": [node]}]}
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    kind = "preferredDuringSchedulingIgnoredDuringExecution"
    node_affinity[kind] = [*(node_affinity.get(kind) or []), {"weight": 100, "preference": unwanted}]
    return {**affinity, "nodeAffinity": node_affinity}


def together(affinity: Object, labels: dict[str, str]) -> Object:
    """An affinity that also keeps pods on one node, since they mount a claim that only one node can mount."""
    term = {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": labels}}
    pod_affinity = dict(affinity.get("podAffinity") or {})
    kind = "requiredDuringSchedulingIgnoredDuringExecution"
    pod_affinity[kind] = [*(pod_affinity.get(kind) or []), term]
    return {**affinity, "podAffinity": pod_affinity}


def apart(job: Job) -> bool:
    """Whether the job's own fields forbid that two of its workers are on one node."""
    workers = job.spec.workers
    anti = ((workers.affinity or {}).get("podAntiAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    own = naming.selector(job.name, naming.WORKER) | (workers.labels or {})
    keeps = any(
        term.get("topologyKey") == HOSTNAME and _selects(term.get("labelSelector") or {}, own) for term in anti or []
    )
    return workers.host_network or keeps


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    given = (selector.get("matchLabels") or {}).items()
    return not selector.get("matchExpressions") and all(labels.get(key) == value for key, value in given)
