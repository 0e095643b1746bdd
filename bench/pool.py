"""200 trials of 0.3 s with two evaluators on the local cluster, beside a pod for each trial. Value: trials a minute.

The peer makes pods itself, two at once, from an image that every node has, and looks at them without pause: what any
operator that runs a pod for each trial does at least.
"""

import argparse
import json
import time

from bench.report import emit
from tests.e2e.cluster_jobs import Object, Site, installed, until
from tests.e2e.cluster_searches import apply_search

BAR = 10.0
FUNCTION = """
import time

def score(trial):
    time.sleep(0.3)
    return {"score": float(sum(trial.choices.values()))}
"""


def ours(site: Site, trials: int) -> float:
    """Trials a minute, from the first one's end to the last one's."""
    search = apply_search(site, "pool", FUNCTION, budget={"trials": trials}, algorithm={"name": "random"})
    search.reached(1)
    began, first = time.time(), search.ended
    search.succeeded(600)
    rate = 60 * (trials - first) / (time.time() - began)
    search.remove()
    return rate


def pods(site: Site, trials: int) -> float:
    """The same with a pod for each trial."""
    data = {"scored.py": FUNCTION}
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
    script = "import scored, types;print(scored.score(types.SimpleNamespace(choices=dict(a=1))))"
    rules: Object = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "trial",
        "image": site.trainer_image,
        "command": ["python", "-c", script],
        "workingDir": "/source",
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
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
