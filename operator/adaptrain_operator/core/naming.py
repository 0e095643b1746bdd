"""Names, labels and annotations of everything that a job becomes."""

import re
from collections.abc import Mapping
from typing import Any

from adaptrain_api.objects import GROUP, VERSION
from adaptrain_api.training.job import KIND

FIELD_MANAGER = "adaptrain-operator"
API_VERSION = f"{GROUP}/{VERSION}"

MANAGED_BY = "app.kubernetes.io/managed-by"
JOB_NAME = f"{GROUP}/job-name"
SEARCH_NAME = f"{GROUP}/search-name"
ROLE = f"{GROUP}/role"
COORDINATOR_NUMBER = f"{GROUP}/coordinator"

TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Annotation of a pod: a hash of the user's fields that it was made from."""
AVOIDED_NODES = f"{GROUP}/avoided-nodes"
"""Annotation of a pod: nodes that it may not be placed on, comma-separated."""
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
"""Annotation of a pod: whose logs ``kubectl logs`` shows, whatever containers were added."""
TRIAL = f"{GROUP}/trial"
"""Label of a job: the number of the search's trial that it is."""
GIVEN = f"{GROUP}/given"
"""Annotation of such a job: what the search's coordinator has to know of the trial, as JSON."""

OWNED_SELECTOR = f"{MANAGED_BY}={FIELD_MANAGER}"
"""Everything that the operator made, and nothing else."""

WORKER = "worker"
COORDINATOR = "coordinator"
SOURCE = "source"
PACKAGES = "packages"


def common_labels(instance: str, component: str) -> dict[str, str]:
    """The labels that Kubernetes recommends."""
    return {
        "app.kubernetes.io/name": "adaptrain",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "adaptrain",
        MANAGED_BY: FIELD_MANAGER,
    }


def labels(job: str, component: str) -> dict[str, str]:
    """The labels of a child: the common ones, and those that selectors use."""
    return {**common_labels(job, component), JOB_NAME: job, ROLE: component}


def selector(job: str, component: str) -> dict[str, str]:
    """What a Service, budget or policy selects a job's pods by."""
    return {JOB_NAME: job, ROLE: component}


def owner(name: str, uid: str, kind: str = KIND) -> dict[str, Any]:
    """The reference that lets the garbage collector remove a child with its job or search.

    ``blockOwnerDeletion`` stays false: setting it needs a right on the job's finalizers that we don't ask for.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def config_map(job: str) -> str:
    return f"{job}-job"


def token_secret(job: str, uid: str) -> str:
    """One that no other job had: a kubelet keeps an immutable Secret for as long as any pod on its node names it, so
    pods of a job made again would be given the token of the one that was deleted."""
    return f"{job}-token-{uid.partition('-')[0]}"


def service_account(job: str) -> str:
    return f"{job}-training"


def coordinator_service(job: str) -> str:
    return f"{job}-coordinator"


def coordinator_pod(job: str, number: int) -> str:
    return f"{job}-coordinator-{number}"


def worker_pod(job: str, number: int) -> str:
    return f"{job}-worker-{number}"


_POD = re.compile(rf"-({COORDINATOR}|{WORKER})-\d+$")


def role(pod: Mapping[str, Any]) -> str:
    """What a pod is, by its name, which nobody can change; of a name of another form its label tells."""
    meta = pod["metadata"]
    found = _POD.search(meta["name"])
    return found.group(1) if found else (meta.get("labels") or {}).get(ROLE, "")


def job_of(obj: Mapping[str, Any]) -> str | None:
    """The name of the job that controls an object, else of the one that its label names."""
    meta = obj["metadata"]
    for owner in meta.get("ownerReferences") or []:
        if owner.get("controller") and owner.get("kind") == KIND and "name" in owner:
            return str(owner["name"])
    return (meta.get("labels") or {}).get(JOB_NAME)


def relabelled(pod: Mapping[str, Any]) -> bool:
    """Whether somebody changed a pod's labels, so that policies and budgets no longer select it."""
    found = pod["metadata"].get("labels") or {}
    return (found.get(JOB_NAME), found.get(ROLE)) != (job_of(pod), role(pod))


def workers(job: str) -> str:
    """The budget and the network policy of the workers."""
    return f"{job}-workers"
