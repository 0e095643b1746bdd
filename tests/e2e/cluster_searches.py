"""Searches on a cluster of real nodes. For tests and benchmarks alike."""

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import JOBS, Site, name_of, processes

SCORED = """
import time

def score(trial):
    time.sleep(0.1)
    return {"score": float(sum((0.0, 1.0, 0.4, 2.0)[n] for n in trial.choices.values()))}
"""


@dataclass
class ClusterSearch:
    """A search on the cluster."""

    site: Site
    name: str
    folder: Path

    @property
    def path(self) -> str:
        return f"{JOBS}/namespaces/{self.site.namespace}/architecturesearches/{self.name}"

    @property
    def status(self) -> Object:
        found: Object = self.site.api.get(self.path).get("status") or {}
        return found

    def condition(self, type: str) -> Object:
        return next((one for one in self.status.get("conditions", []) if one["type"] == type), {})

    def pods(self, role: str) -> list[Object]:
        selector = f"adaptrain.io/search-name={self.name},adaptrain.io/role={role}"
        found = self.site.pods(self.site.namespace, selector)
        return [
            pod
            for pod in found
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    @property
    def ended(self) -> int:
        trials = self.status.get("trials") or {}
        return sum(trials.get(state, 0) for state in ("complete", "pruned", "failed"))

    @property
    def trials(self) -> list[Object]:
        """The jobs that are its trials."""
        found = self.site.api.get(
            f"{JOBS}/namespaces/{self.site.namespace}/adaptivetrainingjobs?labelSelector=adaptrain.io/trial,"
            f"adaptrain.io/search-name={self.name}"
        )
        items: list[Object] = found["items"]
        return items

    def patch(self, **spec: Any) -> None:
        status, body = self.site.api("PATCH", self.path, {"spec": spec}, kind="application/merge-patch+json")
        assert status == 200, body

    def reached(self, trials: int, seconds: float = 90) -> None:
        until(f"{trials} trials", lambda: self.ended >= trials, seconds, self.tell)

    def succeeded(self, seconds: float = 120) -> Object:
        def look() -> bool:
            assert self.status.get("phase") != "Failed", self.tell()
            return bool(self.status.get("phase") == "Succeeded")

        until("the search succeeds", look, seconds, self.tell)
        return self.status

    def tell(self) -> str:
        lines = [json.dumps(self.status, indent=1)]
        for pod in self.site.pods(self.site.namespace, ""):
            if not name_of(pod).startswith(f"{self.name}-"):  # its own and its trials'
                continue
            lines.append(f"{name_of(pod)}: {json.dumps(pod['status'].get('containerStatuses'))}")
            lines.append(self.site.kubectl("logs", name_of(pod), "-n", self.site.namespace, "--tail=20"))
        return "\n".join(lines)

    def remove(self) -> None:
        self.site.api("DELETE", self.path)

    def kill(self, role: str) -> None:
        """SIGKILL the process of one of its pods."""
        until(f"a {role} runs", lambda: strike(self.pods(role)), told=self.tell)


def strike(pods: list[Object]) -> bool:
    """SIGKILL a process of one of these pods; whether one ran."""
    for pod in pods:
        for pid in processes(pod):
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def apply_search(site: Site, name: str, function: str = SCORED, **spec: Any) -> ClusterSearch:
    """Apply a search of a function over four choices in each of six places; ``spec`` replaces parts of it, and None
    removes them."""
    folder = site.claim(name) / f"{site.namespace}.{name}-pool"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    source = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"scored.py": function}}
    base: Object = {
        "space": {"parameters": [{"name": f"c{n}", "values": [0, 1, 2, 3]} for n in range(6)]},
        "objectives": [{"metric": "score", "goal": "maximize"}],
        "algorithm": {"name": "evolution"},
        "budget": {"trials": 60},
        "parallelism": {"max": 2},
        "evaluators": {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
        "trial": {"callable": "scored:score", "source": {"configMap": {"name": name}}},
        "storage": {"volume": {"persistentVolumeClaim": {"claimName": name}}},
        "imagePullPolicy": "Always",
    }
    manifest = {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "ArchitectureSearch",
        "metadata": {"name": name},
        "spec": {name: value for name, value in (base | spec).items() if value is not None},
    }
    site.apply(source, manifest)
    return ClusterSearch(site, name, folder)
