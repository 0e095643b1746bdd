"""A node stopped, and a node cut off, each with and without the job's coordinator on it.

Value: the slowest replacement of the lost node's worker, seconds from the loss until it has applied a step on the other
node. The peer is an Indexed Job, as training operators make them, on a node that is stopped: seconds until its pod
runs on the other node, with Kubernetes' defaults.
"""

import argparse
import time

from bench.replace import indexed_job
from bench.report import emit
from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import ClusterJob, Site, name_of, node_of
from tests.e2e.installation import installed

PEER_LIMIT_SECONDS = 600.0
REPLACED_SECONDS = 20.0
STALL_SECONDS = {False: 5.0, True: 25.0}
"""How long survivors may stand still, by whether their coordinator was on the lost node."""


def lose(site: Site, job: ClusterJob, how: str, with_coordinator: bool) -> tuple[float, float]:
    """Take a node away and give it back. Returns the survivor's stall and the time to the replacement's first step."""
    lost = next(node for node in site.nodes if node != site.operator_node)
    job.spread()
    job.move_coordinator(lost if with_coordinator else site.operator_node)
    survivor = job.spread()[site.operator_node]
    job.advances()
    try:
        event = time.time()
        (site.cluster.node_stop if how == "stop" else site.cluster.node_cut)(lost)

        def first_step() -> float | None:
            new = [p for p in job.workers if node_of(p) == site.operator_node and name_of(p) != name_of(survivor)]
            return min((t for pod in new for t, _ in job.times(name_of(pod)) if t > event), default=None)

        replaced: float = until("the worker runs on the other node", first_step, 120, job.tell) - event
        job.settled(2)
        job.advances()
        stall = job.stall(name_of(survivor), event)
    finally:
        (site.cluster.node_start if how == "stop" else site.cluster.node_heal)(lost)
    whole = {name_of(pod) for pod in [*job.settled(2), *job.pods("coordinator")] if node_of(pod) == site.operator_node}
    until(
        "nothing is doubled",
        lambda: {name_of(pod) for role in ("worker", "coordinator") for pod in job.pods(role)} == whole,
        60,
        job.tell,
    )
    until("the node is used again", lambda: not job.status.get("avoidedNodes"), 30, job.tell)
    job.check_samples()
    return stall, replaced


def lose_peer(site: Site) -> float:
    """The same for an Indexed Job of one pod, which only has to run."""
    lost = next(node for node in site.nodes if node != site.operator_node)
    job = indexed_job(site.trainer_image)
    job["spec"] |= {"completions": 1, "parallelism": 1}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [lost]}
    preferred = [{"weight": 100, "preference": {"matchExpressions": [here]}}]
    pod = job["spec"]["template"]["spec"]
    pod["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    path = f"/apis/batch/v1/namespaces/{site.namespace}/jobs"
    status, body = site.api("POST", path, job)
    assert status == 201, body

    def running(on: str) -> list[Object]:
        pods = site.pods(site.namespace, "batch.kubernetes.io/job-name=peer")
        return [p for p in pods if node_of(p) == on and p["status"]["phase"] == "Running"]

    until("the peer's pod runs", lambda: running(lost), 60)
    site.cluster.node_stop(lost)
    began = time.time()
    try:
        until("the peer's pod runs elsewhere", lambda: running(site.operator_node), PEER_LIMIT_SECONDS)
        return time.time() - began
    finally:
        site.cluster.node_start(lost)
        site.api("DELETE", f"{path}/peer", {"propagationPolicy": "Background"})


def measure(rounds: int) -> tuple[float, float, dict[str, list[dict[str, float]]], bool]:
    worst, ok, found = 0.0, True, {}
    with installed("adaptrain-bench") as site:
        job = site.job("nodes", workers={"terminationGracePeriodSeconds": 10})
        job.settled(2)
        for how in ("stop", "cut"):
            for with_coordinator in (False, True):
                what = f"{how}{'-with-coordinator' if with_coordinator else ''}"
                for _ in range(rounds):
                    stall, replaced = lose(site, job, how, with_coordinator)
                    print(f"{what}: survivor's stall {stall:.1f} s, replaced after {replaced:.1f} s", flush=True)
                    found.setdefault(what, []).append({"stall": round(stall, 2), "replaced": round(replaced, 2)})
                    worst = max(worst, replaced)
                    ok = ok and stall <= STALL_SECONDS[with_coordinator] and replaced <= REPLACED_SECONDS
        job.remove()
        peer = lose_peer(site)
    return worst, peer, found, ok


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    worst, peer, found, ok = measure(parser.parse_args().rounds)
    emit("nodes", worst, "s", "an Indexed Job", peer, ok, events=found)
