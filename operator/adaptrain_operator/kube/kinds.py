"""The kinds that the operator touches, and where the API server keeps them."""

from dataclasses import dataclass

from adaptrain_api import objects
from adaptrain_api.search import job as searches
from adaptrain_api.training import job as jobs


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    api: str
    """Path of the API group and version."""
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        parts = [self.api]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


JOB = Kind(jobs.KIND, f"/apis/{objects.GROUP}/{objects.VERSION}", jobs.PLURAL)
SEARCH = Kind(searches.KIND, f"/apis/{objects.GROUP}/{objects.VERSION}", searches.PLURAL)
POD = Kind("Pod", "/api/v1", "pods")
SERVICE = Kind("Service", "/api/v1", "services")
BUDGET = Kind("PodDisruptionBudget", "/apis/policy/v1", "poddisruptionbudgets")
POLICY = Kind("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies")
CONFIG_MAP = Kind("ConfigMap", "/api/v1", "configmaps")
SECRET = Kind("Secret", "/api/v1", "secrets")
SERVICE_ACCOUNT = Kind("ServiceAccount", "/api/v1", "serviceaccounts")
EVENT = Kind("Event", "/api/v1", "events")
LEASE = Kind("Lease", "/apis/coordination.k8s.io/v1", "leases")
CLAIM = Kind("PersistentVolumeClaim", "/api/v1", "persistentvolumeclaims")
LIMIT_RANGE = Kind("LimitRange", "/api/v1", "limitranges")
NODE = Kind("Node", "/api/v1", "nodes", namespaced=False)

CHILDREN = (SERVICE, BUDGET, POLICY)
"""Watched children of fixed names."""
APPLIED = {kind.name: kind for kind in (*CHILDREN, CONFIG_MAP, SECRET, SERVICE_ACCOUNT)}
