"""A worker's pod deleted without grace, 20 times in a row, beside an Indexed Job whose pod is deleted the same way.

Value: the slowest return to full size, seconds: the new worker has applied its first step together with the other one.
``status_max`` is when the job's status said so. The Indexed Job's pod only has to run.
"""

import argparse
import statistics
import sys
import time

from bench.report import emit
from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import ClusterJob, Site, name_of
from tests.e2e.installation import installed

BAR_SECONDS = 8.0
LIKE_THE_FIRST = 2.0
"""The last return may take at most so many times the first: no back-off builds up."""


def losses(job: ClusterJob, count: int) -> tuple[list[float], list[float]]:
    """Seconds from each deletion until the new worker's first step, and until the job's status told of it."""

    def lose(victim: Object) -> tuple[float, float]:
        began = time.time()
        job.delete(victim)
        until("the loss shows", lambda: name_of(victim) not in map(name_of, job.workers))
        newest = job.settled(2, 60)[-1]
        told = time.time() - began
        first = until("its first step", lambda: job.times(name_of(newest)))[0][0]
        return first - began, told

    took, told = [], []
    for number in range(count):
        victim = job.settled(2)[number % 2]
        job.advances(steps=5)
        first, said = lose(victim)
        took.append(first)
        told.append(said)
        print(f"{number + 1}: {name_of(victim)} is replaced after {first:.1f} s, told after {said:.1f} s", flush=True)
    return took, told


def peer_losses(site: Site, count: int) -> list[float]:
    """The same of an Indexed Job whose pods sleep: there is nothing to start but a container."""
    path = f"/apis/batch/v1/namespaces/{site.namespace}/jobs"
    status, body = site.api("POST", path, indexed_job(site.trainer_image))
    assert status == 201, body

    def running() -> list[Object]:
        pods = site.pods(site.namespace, "batch.kubernetes.io/job-name=peer")
        alive = [p for p in pods if "deletionTimestamp" not in p["metadata"] and p["status"]["phase"] == "Running"]
        return alive if len(alive) == 2 else []

    def lose(victim: Object) -> float:
        began = time.monotonic()
        where = f"/api/v1/namespaces/{site.namespace}/pods/{name_of(victim)}"
        site.api("DELETE", where, {"gracePeriodSeconds": 0})
        until("the loss shows", lambda: name_of(victim) not in map(name_of, running()))
        until("two pods run", running, 300)
        return time.monotonic() - began

    took = []
    try:
        for number in range(count):
            victim = until("two pods run", running, 120)[number % 2]
            took.append(lose(victim))
            print(f"Indexed Job, {number + 1}: {name_of(victim)} is replaced after {took[-1]:.1f} s", flush=True)
    finally:
        site.api("DELETE", f"{path}/peer", {"propagationPolicy": "Background"})
    return took


def indexed_job(image: str) -> Object:
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "sleep", "image": image, "command": ["sleep", "3600"], "securityContext": security}
    spec = {
        "completions": 2,
        "parallelism": 2,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": 100,
        "template": {
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]},
        },
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "peer"}, "spec": spec}


def measure(count: int, peer_count: int) -> tuple[list[float], list[float], list[float], int]:
    with installed("adaptrain-bench") as site:
        job = site.job("replace")
        job.settled(2)
        took, told = losses(job, count)
        failures = job.status.get("restarts") or 0
        steps = job.check_samples()
        print(f"every sample applied exactly once in {steps} steps", flush=True)
        job.remove()
        return took, told, peer_losses(site, peer_count), failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--peer-losses", type=int, default=3)
    arguments = parser.parse_args()
    took, told, peer, failures = measure(arguments.losses, arguments.peer_losses)
    if not took or not peer:
        sys.exit("nothing was measured")
    alike = took[-1] <= LIKE_THE_FIRST * took[0]
    ok = max(took) <= BAR_SECONDS and alike and failures == 0
    more = {
        "status_max": max(told),
        "median": statistics.median(took),
        "first": took[0],
        "last": took[-1],
        "counted_failures": failures,
    }
    emit("replace", max(took), "s", "an Indexed Job (its slowest)", max(peer), ok, **more, peer_all=peer)
