"""A node stopped, and a node cut off, each with and without the job's coordinator on it.

Value: the slowest replacement of the lost node's worker, seconds from the loss until it has applied a step on the other
node. There is no peer in this run: ``peer_value`` is the time after which the control plane by itself would make a
pod elsewhere, with its defaults (a node is unreachable after 50 s, and its pods are evicted 300 s later).
"""

import argparse
import time

from bench.report import emit
from tests.e2e.cluster_jobs import ClusterJob, Site, installed, name_of, node_of, until

EVICTION_SECONDS = 350.0
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


def measure(rounds: int) -> tuple[float, dict[str, list[dict[str, float]]], bool]:
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
    return worst, found, ok


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    worst, found, ok = measure(parser.parse_args().rounds)
    emit("nodes", worst, "s", "Kubernetes' eviction, by its defaults", EVICTION_SECONDS, ok, events=found)
