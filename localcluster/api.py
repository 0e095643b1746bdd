"""The cluster as Python sees it; the command line, the tests and the demo are made of this."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import (
    build,
    cgroups,
    controlplane,
    images,
    kwok,
    monitoring,
    network,
    packages,
    pki,
    sysctls,
    teardown,
)
from localcluster.command import file_lock
from localcluster.config import CHECKOUT, MAX_NODES, Paths, state_dir
from localcluster.controlplane import ControlPlane
from localcluster.errors import ClusterError
from localcluster.kube import Kube, KubeError
from localcluster.node import DAEMONS, Node
from localcluster.process import Processes
from localcluster.progress import say, step

TOOLS = ("helm", "kubectl", "prometheus")
_RUN_SPACE = 5 << 30
# Bits of the effective capabilities: to make network links and namespaces, and to mount.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


@dataclass(frozen=True)
class Component:
    """One row of ``status``."""

    name: str
    state: str
    pid: int | None
    log: str


@dataclass(frozen=True)
class NodeStatus:
    """A node as its machine is, and as Kubernetes sees it."""

    name: str
    state: str
    ready: bool
    ip: str


@dataclass(frozen=True)
class Status:
    components: list[Component]
    nodes: list[NodeStatus]

    @property
    def healthy(self) -> bool:
        """All that was ever started still runs, and every node is ready."""
        states = [*(item.state for item in self.components), *(item.state for item in self.nodes)]
        return all(state == "running" for state in states) and all(node.ready for node in self.nodes)


class Cluster:
    """The one local cluster of this machine."""

    def __init__(self) -> None:
        self._paths = Paths(state_dir())
        self._processes = Processes(self._paths)

    @property
    def state(self) -> Path:
        return self._paths.state

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        if not self._paths.kubeconfig.exists():
            raise ClusterError("there is no cluster: run `python -m localcluster up`")
        return self._paths.kubeconfig

    def up(self, nodes: int = 2) -> None:
        """Makes the cluster run with at least so many nodes; repairs one that half does."""
        if not 0 <= nodes <= MAX_NODES:
            raise ClusterError(f"a cluster has 0 to {MAX_NODES} nodes")
        _check_machine()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            installing = pool.submit(packages.install, packages.CLUSTER)
            programs = build.programs(*build.CLUSTER)
            installing.result()
        with self._locked():
            if shutil.disk_usage(self._paths.state).free < _RUN_SPACE:
                raise ClusterError(f"a cluster takes at least 5 GB in {self._paths.state}: free some")
            network.check_owner(self._paths)
            teardown.remember(self._paths)
            sysctls.apply(self._paths.state / teardown.SYSCTLS)
            cgroups.create(controlplane.CGROUP)
            network.ensure_bridge(self._paths)
            with step("control plane"):
                pki.ensure(self._paths, programs["kubeadm"])
                kube = ControlPlane(self._paths, self._processes, programs).ensure()
            if self._processes.record(kwok.NAME):
                kwok.ensure(self._paths, self._processes)
            wanted = sorted({*self._names(), *(f"node{number}" for number in range(1, nodes + 1))}, key=_number)
            if wanted:
                self._ensure_nodes([self._node(name, programs) for name in wanted], programs, kube)
        say(f"the cluster is up: export KUBECONFIG={self.kubeconfig}")

    def down(self) -> None:
        """Removes the cluster and every trace of it but the caches."""
        _check_root()
        packages.install(packages.CLUSTER)
        network.check_owner(self._paths)
        with self._locked(), step("bringing the cluster down"):
            teardown.remove_everything(self._paths)

    def status(self) -> Status:
        """What runs, from the processes themselves; Kubernetes is asked for the nodes only."""
        self.kubeconfig  # noqa: B018  no cluster, no status
        names = [name for name in controlplane.names() if self._processes.record(name)]
        names += [name for name in (kwok.NAME, monitoring.DISCOVERY, monitoring.NAME) if self._processes.record(name)]
        ready = self._ready_nodes()
        nodes = []
        for name in self._names():
            node = self._node(name, {})
            state = node.state
            nodes.append(NodeStatus(name, state, ready.get(name, False), node.ip))
            if state != "stopped":
                names += [node.daemon(role) for role in DAEMONS]
        return Status([self._component(name) for name in names], nodes)

    def node_add(self) -> str:
        """Adds the next node and returns its name."""
        with self._running() as (programs, kube):
            name = f"node{max(map(_number, self._names()), default=0) + 1}"
            if _number(name) > MAX_NODES:
                raise ClusterError(f"a cluster has at most {MAX_NODES} nodes")
            self._ensure_nodes([self._node(name, programs)], programs, kube)
        return name

    def node_stop(self, name: str) -> None:
        """Cuts the node's power: nothing that runs on it can say goodbye."""
        with self._running() as (programs, _):
            node = self._known(name, programs)
            with step(f"cutting the power of {name}"):
                node.power_off()

    def node_start(self, name: str) -> None:
        """Turns the node on again."""
        with self._running() as (programs, kube):
            self._ensure_nodes([self._known(name, programs)], programs, kube)

    def node_cut(self, name: str) -> None:
        """Takes the node off the network; all on it runs on."""
        with self._running() as (programs, _):
            node = self._known(name, programs)
            with step(f"cutting {name} off the network"):
                node.cut()

    def node_heal(self, name: str) -> None:
        """Puts the node back on the network."""
        with self._running() as (programs, _):
            node = self._known(name, programs)
            with step(f"reconnecting {name}"):
                node.heal()

    def node_fake(self, count: int) -> None:
        """Makes it so many simulated nodes."""
        if count < 0:
            raise ClusterError("the number of simulated nodes cannot be negative")
        build.programs(build.KWOK)
        with self._running() as (_, kube), step(f"{count} simulated nodes"):
            kwok.scale(count, self._paths, self._processes, kube)

    def image_build(self, tag: str, target: str | None = None, dockerfile: Path = CHECKOUT / "Dockerfile") -> None:
        """Builds an image from a Dockerfile; the folder that holds it is the context."""
        _check_root()
        images.build(dockerfile.resolve().parent, dockerfile, target, tag)

    def image_load(self, name: str) -> str:
        """Brings a built image to where the nodes pull; returns the reference that pods use."""
        _check_root()
        if self._processes.pid("registry") is None:
            raise ClusterError("the cluster's registry is not running: run `python -m localcluster up`")
        return images.load(name)

    def prometheus(self) -> str:
        """Runs a Prometheus that scrapes the cluster's pods; returns its URL. It ends with the cluster."""
        program = self.tool(monitoring.NAME)
        with self._running(), step("Prometheus"):
            return monitoring.ensure(program, self._paths, self._processes)

    def tool(self, name: str) -> Path:
        """The path of a program that helps with clusters, got first if need be."""
        if name == "prometheus":
            packages.install(packages.PROMETHEUS)
            return Path(packages.find(name) or name)
        return build.programs(build.HELM if name == "helm" else build.KUBERNETES)[name]

    def snapshot(self) -> dict[str, Any]:
        """All that a cluster adds to this machine."""
        return teardown.snapshot()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self._paths.state / "lock", "another command on this cluster"):
            yield

    @contextmanager
    def _running(self) -> Iterator[tuple[dict[str, Path], Kube]]:
        _check_root()
        programs = build.programs(*build.CLUSTER)
        self.kubeconfig  # noqa: B018  no cluster, no change
        with self._locked():
            yield programs, Kube(self._paths)

    def _names(self) -> list[str]:
        return sorted((folder.name for folder in self._paths.nodes.glob("node*")), key=_number)

    def _node(self, name: str, programs: dict[str, Path]) -> Node:
        return Node(name, self._paths, self._processes, programs)

    def _known(self, name: str, programs: dict[str, Path]) -> Node:
        if name not in self._names():
            raise ClusterError(f"there is no node {name}; there are {', '.join(self._names()) or 'none'}")
        return self._node(name, programs)

    def _ensure_nodes(self, nodes: list[Node], programs: dict[str, Path], kube: Kube) -> None:
        with step(f"nodes {', '.join(node.name for node in nodes)}"):
            archive = images.pause_archive(programs, self._paths.state)
            for node in nodes:
                node.ensure(archive)
            for node in nodes:
                node.wait_ready(kube)
        with step("Service network of the host"):
            ControlPlane(self._paths, self._processes, programs).ensure_proxy()

    def _ready_nodes(self) -> dict[str, bool]:
        try:
            items = Kube(self._paths, timeout=3).items("/api/v1/nodes")
        except (KubeError, OSError):
            return {}
        conditions = {item["metadata"]["name"]: item["status"].get("conditions", []) for item in items}
        return {
            name: any(c["type"] == "Ready" and c["status"] == "True" for c in each) for name, each in conditions.items()
        }

    def _component(self, name: str) -> Component:
        pid = self._processes.pid(name)
        return Component(name, "running" if pid else "dead", pid, str(self._processes.log(name)))


def _number(name: str) -> int:
    return int(name.removeprefix("node"))


def _check_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a local cluster makes network links and namespaces, which takes root: run this with sudo")


def _check_machine() -> None:
    _check_root()
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    for name, bit in _CAPABILITIES.items():
        if not effective >> bit & 1:
            raise ClusterError(
                f"root lacks the capability {name} here, as in most containers: use a real or virtual machine, or a "
                "cluster you have, with its own kubeconfig"
            )
