"""200 trials of about 0.3 s with two evaluators on the local cluster, beside a pod for each trial.

Value: trials a minute. A trial trains a small network on digits. The peer makes pods itself, two at once, from an
image that every node has, and looks at them without pause: what any operator that runs a pod for each trial does at
least.
"""

import argparse
import json
import time

from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.training.job import dump

from bench.report import emit
from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import Site
from tests.e2e.cluster_searches import apply_search
from tests.e2e.installation import installed

BAR = 10.0
SEARCH: Object = {
    "space": {"parameters": [{"name": "model.args.width", "min": 8, "max": 207, "step": 1}]},
    "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
    "algorithm": {"name": "random"},
    "trial": {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "phases": [
            {
                "name": "train",
                "type": "supervised",
                "optimizer": {"learningRate": 0.002},
                "batch": {"size": 64},
                "stop": {"epochs": 6},
            }
        ],
    },
    "evaluators": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
}
ONE = """
import json, pathlib
from adaptrain.search.evaluation.training_trial import Training
from adaptrain_api.search.job import ArchitectureSearchSpec

spec = ArchitectureSearchSpec.model_validate(json.loads(pathlib.Path("/source/spec.json").read_text()))
print(Training(spec, None).run({"trial": 0, "parameters": {"model.args.width": 64}}, lambda step, metrics: None))
"""


def ours(site: Site, trials: int) -> float:
    """Trials a minute, from the first one's end to the last one's."""
    search = apply_search(site, "pool", budget={"trials": trials}, **SEARCH)
    search.reached(1)
    began, first = time.time(), search.ended
    search.succeeded(600)
    rate = 60 * (trials - first) / (time.time() - began)
    search.remove()
    return rate


def pods(site: Site, trials: int) -> float:
    """The same with a pod for each trial."""
    spec = dump(ArchitectureSearchSpec.model_validate(SEARCH | {"budget": {"trials": 1}}))
    data = {"spec.json": json.dumps(spec), "one.py": ONE}
    site.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "per-pod"}, "data": data})
    base = f"/api/v1/namespaces/{site.namespace}/pods"
    made = 0
    running: list[str] = []
    began = time.time()
    while made < trials or running:
        while made < trials and len(running) < 2:
            name = f"trial-{made}"
            status, body = site.api("POST", base, _pod(site, name))
            assert status == 201, body
            running.append(name)
            made += 1
        for name in list(running):
            phase = site.api.get(f"{base}/{name}")["status"].get("phase")
            assert phase != "Failed", json.dumps(site.api.get(f"{base}/{name}")["status"])
            if phase == "Succeeded":
                running.remove(name)
                site.api("DELETE", f"{base}/{name}")
    rate = 60 * trials / (time.time() - began)
    until("they are gone", lambda: not site.pods(site.namespace, "trial=yes"))
    return rate


def _pod(site: Site, name: str) -> Object:
    rules: Object = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "trial",
        "image": site.trainer_image,
        "command": ["python", "/source/one.py"],
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [{"name": "source", "mountPath": "/source"}],
        "securityContext": rules,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "source", "configMap": {"name": "per-pod"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"trial": "yes"}}, "spec": spec}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--peer-trials", type=int, default=20)
    arguments = parser.parse_args()
    with installed("adaptrain-bench") as site:
        value, peer = ours(site, arguments.trials), pods(site, arguments.peer_trials)
    emit("pool", value, "trials/min", "a pod for each trial", peer, value >= BAR * peer)
