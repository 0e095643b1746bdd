"""Simulated nodes: pods on them report to run, but nothing does."""

from __future__ import annotations

from pathlib import Path

from localcluster import build, network
from localcluster.config import Paths
from localcluster.controlplane import CGROUP
from localcluster.kube import Kube, Object
from localcluster.process import Daemon, Processes, as_argv, wait_until

NAME = "kwok"
_NODES = "/api/v1/nodes"
_SELECTED = f"{_NODES}?labelSelector=adaptrain.io/simulated%3Dtrue"
_STAGES = Path(__file__).resolve().parent / "kwok-stages.yaml"
_CAPACITY = {"cpu": "256", "memory": "2Ti", "pods": "1000", "ephemeral-storage": "10Ti", "nvidia.com/gpu": "64"}


def scale(count: int, paths: Paths, processes: Processes, kube: Kube) -> None:
    """Makes it ``count`` simulated nodes, named fake-1, fake-2, …; the highest go first."""
    present = {item["metadata"]["name"] for item in kube.items(_SELECTED)}
    wanted = [f"fake-{number}" for number in range(1, count + 1)]
    if count:
        ensure(paths, processes)
    for name in wanted:
        if name not in present:
            kube.create(_NODES, _node(name))
    if surplus := present - set(wanted):
        # Pods on a node that is no more would be in nobody's care: they go at once.
        for pod in kube.items("/api/v1/pods?resourceVersion=0"):
            if pod["spec"].get("nodeName") in surplus:
                meta = pod["metadata"]
                kube.delete(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}?gracePeriodSeconds=0")
        for name in surplus:
            kube.delete(f"{_NODES}/{name}")
    if not count:
        processes.stop(NAME)
    wait_until(f"{count} simulated nodes", lambda: _ready(kube) == count, timeout=60 + count / 5)


def ensure(paths: Paths, processes: Processes) -> None:
    """Starts kwok, which is built when it is first needed."""
    flags = {
        "kubeconfig": paths.kubeconfig,
        "config": _STAGES,
        "manage-all-nodes": False,
        "manage-nodes-with-annotation-selector": "kwok.x-k8s.io/node=fake",
        "node-lease-duration-seconds": 40,
        "cidr": network.SIMULATED_PODS,
    }
    # A home of its own: kwok would read the settings of the user who starts it.
    home = {"HOME": str(paths.state)}
    processes.start(Daemon(NAME, as_argv(build.programs(build.KWOK)["kwok"], flags), CGROUP, env=home))


def _ready(kube: Kube) -> int:
    conditions = [item["status"].get("conditions", []) for item in kube.items(_SELECTED)]
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in each) for each in conditions)


def _node(name: str) -> Object:
    labels = {
        "adaptrain.io/simulated": "true",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        # Real pods stay away; those of a simulation tolerate this.
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": _CAPACITY, "allocatable": _CAPACITY},
    }
