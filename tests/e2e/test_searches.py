"""Searches on real nodes: evaluators in pods, the study on a volume, the winner trained by a job of its own."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import JOBS, Site, name_of
from tests.e2e.cluster_searches import ClusterSearch, apply_search
from tests.e2e.local_searches import numbers, told

PHASE: Object = {
    "name": "train",
    "type": "supervised",
    "optimizer": {"learningRate": 0.001},
    "batch": {"size": 64},
    "stop": {"epochs": 2},
}


@pytest.fixture
def searching(site: Site) -> Iterator[Callable[..., ClusterSearch]]:
    made: list[ClusterSearch] = []

    def apply(name: str, **spec: Any) -> ClusterSearch:
        made.append(apply_search(site, name, **spec))
        return made[-1]

    yield apply
    for one in made:
        one.remove()


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


def test_trials_that_are_jobs_count_once(site: Site, searching: Callable[..., ClusterSearch]) -> None:
    """Two workers each; their search's coordinator is killed, a job is deleted, and all of them are suspended."""
    workers = {"min": 2, "max": 2, "resources": {"requests": {"cpu": "50m", "memory": "200Mi"}}}
    search = searching(
        "grand",
        space={"parameters": [{"name": "model.args.width", "values": [8, 16, 32]}]},
        objectives=[{"metric": "val/accuracy", "goal": "maximize"}],
        algorithm={"name": "random"},
        budget={"trials": 3},
        execution="Jobs",
        evaluators=None,
        trial={"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE], "workers": workers},
    )

    def workers_of_trials() -> list[Object]:
        return site.pods(site.namespace, "adaptrain.io/role=worker,app.kubernetes.io/component=worker")

    def names(pods: list[Object]) -> set[str]:
        return {name for name in map(name_of, pods) if name.startswith("grand-trial-")}

    until("two trials are jobs", lambda: len(search.trials) == 2, 90, search.tell)
    first = name_of(search.trials[0])
    site.api("DELETE", f"{JOBS}/namespaces/{site.namespace}/adaptivetrainingjobs/{first}")
    until("it is made again", lambda: first in {name_of(job) for job in search.trials}, 30, search.tell)
    search.kill("coordinator")
    search.patch(suspend=True)
    until("their workers are gone", lambda: not names(workers_of_trials()), 90, search.tell)
    search.patch(suspend=False)
    status = search.succeeded(300)
    assert status["trials"] == {"complete": 3, "pruned": 0, "failed": 0, "running": 0}
    assert not search.pods("worker"), "the search has none of its own"
    found = told(search.folder)
    assert sorted(numbers(found)) == [0, 1, 2]
    assert status["best"] == f"val/accuracy={max(trial.value or 0.0 for trial in found):.4g}"
    until("its trials' jobs are gone", lambda: not search.trials, told=search.tell)


def test_the_winner_is_trained_by_a_job_of_its_own(site: Site, searching: Callable[..., ClusterSearch]) -> None:
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
        "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE]},
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
    weights = made["spec"]["initialWeights"]
    file = good.folder.parent / weights["path"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == weights["sha256"]
    until(
        "the winner is trained",
        lambda: site.api.get(winner).get("status", {}).get("phase") == "Succeeded",
        120,
        good.tell,
    )
    # Training may end before its coordinator was asked once, which is heard out after that.
    words = f"starts from the weights in {weights['path']}"
    until(
        "what happened is told",
        lambda: any(words in change["message"] for change in site.api.get(winner)["status"].get("recentChanges") or ()),
        20,
        good.tell,
    )
    trained = site.api.get(winner)["status"]
    found = status["top"][0]["values"]["val/accuracy"]
    assert trained["metrics"]["best/val/accuracy"] >= found - 1e-6, "it began with the winner's"
    strict.succeeded()
    refused = strict.condition("Promoted")
    assert (refused["status"], refused["reason"]) == ("False", "GateNotPassed")
    assert "and the gate wants at least 0.999: nothing was created" in refused["message"]
    code, _ = site.api("GET", winner.replace("good-winner", "strict-winner"))
    assert code == 404
