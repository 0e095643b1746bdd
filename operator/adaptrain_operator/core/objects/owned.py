"""Builders of the objects that a job becomes, beside its pods."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from adaptrain_api.base import manifest_of
from adaptrain_api.contracts.coordinator_api import CONTROL_PORT, HTTP_PORT, WORKER_METRICS_PORT
from adaptrain_api.objects import ObjectMeta
from adaptrain_api.search.job import POOL
from adaptrain_api.training.job import AdaptiveTrainingJob

from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Job, Object


def metadata(job: Job, name: str, component: str) -> Object:
    """What all that a job becomes has in common."""
    searching = {} if job.spec.search is None else {naming.SEARCH_NAME: job.name.removesuffix(POOL)}
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**naming.labels(job.name, component), **searching},
        "ownerReferences": [naming.owner(job.name, job.uid)],
    }


def config_map(job: Job) -> Object:
    """What the user gave, which coordinator and workers read: their image may be of another release, to which a default
    of ours would be an unknown field. Always the same object: it is not to be changed."""
    return job.once("config map", _config_map)


def digest(job: Job, child: Object) -> str:
    """A digest of one of the job's objects."""
    if child is config_map(job):
        return job.once("digest", lambda job: _digest(config_map(job)))
    return _digest(child)


def _digest(child: Object) -> str:
    return hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()


def _config_map(job: Job) -> Object:
    resolved = AdaptiveTrainingJob(
        metadata=ObjectMeta(name=job.name, namespace=job.namespace, uid=job.uid), spec=job.spec
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, naming.config_map(job.name), "job"),
        "data": {"job.json": json.dumps(manifest_of(resolved), sort_keys=True)},
    }


def service_account(job: Job) -> Object:
    """An identity that may do nothing: training needs no right in the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(job, naming.service_account(job.name), "job"),
        "automountServiceAccountToken": False,
    }


def token_secret(job: Job, token: str) -> Object:
    """What authenticates workers to the coordinator, and the operator to its progress."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(job, naming.token_secret(job.name, job.uid), "job"),
        "type": "Opaque",
        "stringData": {"token": token},
        "immutable": True,
    }


def coordinator_service(job: Job, number: int) -> Object:
    """A fixed name for the coordinator of one number. Not-ready addresses are left out: an old one is never found."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, naming.coordinator_service(job.name), naming.COORDINATOR),
        "spec": {
            "type": "ClusterIP",
            "selector": {
                **naming.selector(job.name, naming.COORDINATOR),
                naming.COORDINATOR_NUMBER: str(number),
            },
            "ports": [
                {"name": "control", "port": CONTROL_PORT, "targetPort": "control", "protocol": "TCP"},
                {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }


def disruption_budget(job: Job) -> Object:
    """Evictions may not take the job below ``min``. An integer, since percentages need a controller with /scale."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(job, naming.workers(job.name), naming.WORKER),
        "spec": {
            "minAvailable": job.spec.workers.min,
            "selector": {"matchLabels": naming.selector(job.name, naming.WORKER)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policies(job: Job, metrics_from: Sequence[Object] = ()) -> list[Object]:
    """torch's own sockets have no authentication, so only workers of the same job may reach a worker.

    Args:
        metrics_from: peers that may reach the ports of metrics and progress; none: anyone.
    """
    open_to: Object = {"from": list(metrics_from)} if metrics_from else {}
    workers = {"podSelector": {"matchLabels": naming.selector(job.name, naming.WORKER)}}
    peers: Object = {} if job.spec.workers.host_network else {"from": [workers]}
    rules: dict[str, tuple[str, list[Object]]] = {
        naming.COORDINATOR: (
            naming.coordinator_service(job.name),
            [
                # Workers with their node's network come from its address, which no selector names: the token guards.
                {**peers, "ports": [{"port": CONTROL_PORT, "protocol": "TCP"}]},
                {**open_to, "ports": [{"port": HTTP_PORT, "protocol": "TCP"}]},
            ],
        ),
        naming.WORKER: (
            naming.workers(job.name),
            [{"from": [workers]}, {**open_to, "ports": [{"port": WORKER_METRICS_PORT, "protocol": "TCP"}]}],
        ),
    }
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(job, name, role),
            "spec": {
                "podSelector": {"matchLabels": naming.selector(job.name, role)},
                "policyTypes": ["Ingress"],
                "ingress": ingress,
            },
        }
        for role, (name, ingress) in rules.items()
    ]


def contained(wanted: Any, found: Any) -> bool:
    """Whether an object has all that we want of it; what the API server added doesn't matter."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and contained(wanted[key], found[key]) for key in wanted)
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(contained(one, other) for one, other in zip(wanted, found, strict=True))
        )
    return bool(wanted == found)
