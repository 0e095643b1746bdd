"""Searches on real nodes: evaluators in pods, the study on a volume, the winner trained by a job of its own."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_jobs import JOBS, Object, Site, name_of, signal_pod, until
from tests.e2e.local_searches import numbers, told

FUNCTION = """
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
        pods = self.site.pods(self.site.namespace, f"adaptrain.io/search-name={self.name}")
        for pod in pods:
            lines.append(f"{name_of(pod)}: {json.dumps(pod['status'].get('containerStatuses'))}")
            lines.append(self.site.kubectl("logs", name_of(pod), "-n", self.site.namespace, "--tail=20"))
        return "\n".join(lines)

    def kill(self, role: str) -> None:
        """SIGKILL the process of one of its pods."""
        pod = until(f"a {role} runs", lambda: self.pods(role), told=self.tell)[0]
        signal_pod(pod, signal.SIGKILL)


@pytest.fixture
def searching(site: Site) -> Iterator[Callable[..., ClusterSearch]]:
    """Apply a search of a function over four choices in each of six places; ``spec`` replaces parts of it."""
    made: list[ClusterSearch] = []

    def apply(name: str, **spec: Any) -> ClusterSearch:
        folder = site.claim(name) / f"{site.namespace}.{name}-pool"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        data = {"scored.py": FUNCTION}
        site.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scored"}, "data": data})
        base: Object = {
            "space": {"parameters": [{"name": f"c{n}", "values": [0, 1, 2, 3]} for n in range(6)]},
            "objectives": [{"metric": "score", "goal": "maximize"}],
            "algorithm": {"name": "evolution"},
            "budget": {"trials": 60},
            "parallelism": {"max": 2},
            "evaluators": {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
            "trial": {"callable": "scored:score", "source": {"configMap": {"name": "scored"}}},
            "storage": {"volume": {"persistentVolumeClaim": {"claimName": name}}},
            "imagePullPolicy": "Always",
        }
        manifest = {
            "apiVersion": "adaptrain.io/v1alpha1",
            "kind": "ArchitectureSearch",
            "metadata": {"name": name},
            "spec": base | spec,
        }
        site.apply(manifest)
        made.append(ClusterSearch(site, name, folder))
        return made[-1]

    yield apply
    for one in made:
        site.api("DELETE", one.path)


def test_kills_suspension_and_a_larger_budget_lose_no_trial(searching: Callable[..., ClusterSearch]) -> None:
    search = searching("survivor")
    search.reached(5)
    search.kill("worker")
    search.reached(15)
    search.kill("coordinator")
    search.reached(25)
    search.patch(suspend=True)
    until("its evaluators are gone", lambda: not search.pods("worker"), told=search.tell)
    until("it is said to be suspended", lambda: search.status.get("phase") == "Suspended", told=search.tell)
    search.patch(suspend=False, parallelism={"max": 0})
    until("it waits", lambda: search.condition("PodsReady").get("reason") == "NoEvaluators", told=search.tell)
    search.patch(parallelism={"max": 2})
    status = search.succeeded()
    assert status["trials"] == {"complete": 60, "pruned": 0, "failed": 0, "running": 0}
    until("its pods are gone", lambda: not search.pods("coordinator"), told=search.tell)
    search.patch(budget={"trials": 80})
    until("it goes on", lambda: search.ended > 60, told=search.tell)
    status = search.succeeded()
    assert status["progress"] == "80/80"
    found = told(search.folder)
    assert sorted(numbers(found)) == list(range(80))
    best = max(trial.value or 0.0 for trial in found)
    assert status["best"] == f"score={best:.4g}"
    assert len(json.dumps(search.site.api.get(search.path))) < 100_000


def test_the_winner_is_trained_by_a_job_of_its_own(site: Site, searching: Callable[..., ClusterSearch]) -> None:
    phase = {
        "name": "train",
        "type": "supervised",
        "optimizer": {"learningRate": 0.001},
        "batch": {"size": 64},
        "stop": {"epochs": 2},
    }
    spec: Object = {
        "space": {
            "parameters": [
                {"name": "model.args.width", "values": [8, 64]},
                {"name": "phases[0].optimizer.learningRate", "min": 0.001, "max": 0.02, "scale": "log", "count": 3},
            ]
        },
        "objectives": [{"metric": "val/accuracy", "goal": "maximize"}, {"metric": "parameters", "goal": "minimize"}],
        "algorithm": {"name": "auto"},
        "budget": {"trials": 6},
        "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [phase]},
        "evaluators": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
    }
    job = {
        "imagePullPolicy": "Always",
        "workers": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
    }
    strict = searching("strict", **spec, promote={"job": job, "gate": {"metric": "val/accuracy", "atLeast": 0.999}})
    good = searching("good", **spec, promote={"job": job, "gate": {"metric": "val/accuracy", "atLeast": 0.5}})
    status = good.succeeded()
    assert status["promotedJob"] == "good-winner"
    assert good.condition("Promoted")["reason"] == "JobCreated"
    winner = f"{JOBS}/namespaces/{site.namespace}/adaptivetrainingjobs/good-winner"
    chosen = json.loads(status["top"][0]["architecture"])
    made = site.api.get(winner)
    assert made["spec"]["model"]["args"]["width"] == chosen["model.args.width"]
    assert made["spec"]["phases"][0]["optimizer"]["learningRate"] == chosen["phases[0].optimizer.learningRate"]
    assert made["metadata"]["ownerReferences"][0]["name"] == "good"
    until("the winner is trained", lambda: site.api.get(winner)["status"].get("phase") == "Succeeded", 120, good.tell)
    strict.succeeded()
    refused = strict.condition("Promoted")
    assert (refused["status"], refused["reason"]) == ("False", "GateNotPassed")
    assert "and the gate wants at least 0.999: nothing was created" in refused["message"]
    found, _ = site.api("GET", winner.replace("good-winner", "strict-winner"))
    assert found == 404
