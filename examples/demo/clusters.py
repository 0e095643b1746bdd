"""Where the demo runs: each kind of cluster says in one sentence what is missing when it can't be used."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.demo.kubectl import Kubectl, run
from localcluster.api import Cluster

CHECKOUT = Path(__file__).resolve().parents[2]
KIND_NAME = "adaptrain"


class Unusable(Exception):
    """This kind of cluster can't be used here, and why."""


@dataclass(frozen=True)
class Target:
    """A cluster that is ready, the images to use, and a Prometheus if the demo may run one."""

    kubectl: Kubectl
    operator_image: str
    trainer_image: str
    prometheus: Callable[[], str] | None


def choose(kind: str) -> Target:
    """Prepare a cluster of a kind: local, current or kind."""
    kinds = {"local": _local, "current": _current, "kind": _kind}
    if kind not in kinds:
        raise Unusable(f"CLUSTER={kind} is none of local, current, kind")
    return kinds[kind]()


def _local() -> Target:
    """A real Kubernetes on this machine; images are built while its programs compile."""
    if os.geteuid() != 0:
        raise Unusable("a local cluster makes network links and namespaces, which takes root: run `sudo make demo`")
    up = _Background(_module("up"), "cluster")
    for target in ("operator", "trainer"):
        build = _module("image", "build", "--target", target, "--tag", _tag(target))
        _Background(build, f"{target} image").join()
    # Compiled while the images are pushed: that waits for disks, not for processors.
    helm = _Background(_module("tool", "helm"), "helm")
    up.join()
    cluster = Cluster()
    images = {target: cluster.image_load(_tag(target)) for target in ("operator", "trainer")}
    helm.join()
    kubectl = Kubectl(str(cluster.tool("kubectl")), str(cluster.tool("helm")), cluster.kubeconfig)
    return Target(kubectl, images["operator"], images["trainer"], cluster.prometheus)


def _current() -> Target:
    """The cluster that the kubeconfig names; asks before anything is changed there."""
    image, operator = os.environ.get("IMAGE"), os.environ.get("OPERATOR_IMAGE")
    if not image or not operator:
        raise Unusable(
            "CLUSTER=current needs images that the cluster can pull: set IMAGE (target trainer of the Dockerfile) and"
            " OPERATOR_IMAGE (target operator)"
        )
    context = run("kubectl", "config", "current-context").strip()
    print(f"This installs adaptrain and a namespace adaptrain-demo in the cluster of the context {context!r}.")
    if os.environ.get("YES") != "1":
        if not sys.stdin.isatty():
            raise Unusable("nobody is there to be asked: set YES=1 to agree")
        if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
            raise Unusable("nothing was changed")
    return Target(Kubectl("kubectl", "helm", None, context), operator, image, None)


def _kind() -> Target:
    """A kind cluster; images are built and loaded with Docker."""
    missing = [program for program in ("docker", "kind", "kubectl", "helm") if shutil.which(program) is None]
    if missing:
        raise Unusable(f"CLUSTER=kind needs {', '.join(missing)} on the PATH: install them, or use CLUSTER=local")
    if subprocess.run(("docker", "info"), capture_output=True, check=False).returncode != 0:
        raise Unusable("CLUSTER=kind needs a running Docker engine: start it, or use CLUSTER=local")
    if KIND_NAME not in run("kind", "get", "clusters").split():
        config = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4"}
        config |= {"nodes": [{"role": role} for role in ("control-plane", "worker", "worker")]}
        run("kind", "create", "cluster", "--name", KIND_NAME, "--config", "-", stdin=json.dumps(config), timeout=900)
    for target in ("operator", "trainer"):
        build = ("docker", "build", "--target", target, "--tag", _tag(target), str(CHECKOUT))
        _Background(build, f"{target} image").join()
        load = ("kind", "load", "docker-image", _tag(target), "--name", KIND_NAME)
        _Background(load, f"{target} image to the nodes").join()
    return Target(Kubectl("kubectl", "helm", None, f"kind-{KIND_NAME}"), _tag("operator"), _tag("trainer"), None)


def _tag(target: str) -> str:
    return f"adaptrain-{target}:demo"


def _module(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "localcluster", *words)


class _Background:
    """A long command, whose lines are shown with its name in front."""

    def __init__(self, command: tuple[str, ...], name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end.

        Raises:
            Unusable: it failed.
        """
        while self._process.poll() is None:
            self._thread.join(timeout=0.5)
        self._thread.join()
        if self._process.returncode != 0:
            raise Unusable(f"{self._name} failed:\n" + "\n".join(self._lines[-20:]))
        print(f"[{self._name}] ready after {time.monotonic() - self._began:.0f} s", flush=True)

    def _show(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip())
            print(f"[{self._name}] {line.rstrip()}", flush=True)
