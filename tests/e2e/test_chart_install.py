"""The chart's life on a real cluster: installed where ``restricted`` is enforced, tested, upgraded, removed.

The release has names of its own and serves one namespace, so that it disturbs nobody else on the cluster.
"""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from tests.e2e.test_chart import CHART, CRDS, NAMESPACED, Object, helm, images, kubeconfig, kubectl, run

__all__ = ["helm", "images", "kubeconfig", "kubectl"]

JOB = """
apiVersion: adaptrain.io/v1alpha1
kind: AdaptiveTrainingJob
metadata: {name: kept}
spec:
  image: registry.invalid/trainer:none
  workers: {min: 1, max: 2}
  model: {name: mlp}
  data: {name: digits}
  phases:
  - {name: train, type: supervised, optimizer: {learningRate: 0.001}, batch: {size: 64}, stop: {epochs: 1}}
"""


def until(look: Any, what: str, seconds: float = 60) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return found


@dataclass
class Release:
    """A release of the chart in a namespace of its own, and a namespace that it serves."""

    name: str
    namespace: str
    served: str
    helm: list[str]
    kubectl: list[str]
    values: Object

    @property
    def account(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}-adaptrain-operator"

    def upgrade(self, chart: Path = CHART, **values: Any) -> str:
        words = [
            "upgrade",
            "--install",
            self.name,
            chart,
            "--namespace",
            self.namespace,
            "--take-ownership",
            "--force-conflicts",
        ]
        given = yaml.safe_dump(self.values | values)
        return run(*self.helm, *words, "--values", "-", "--wait", "--timeout", "150s", give=given, seconds=200)

    def get(self, what: str, *more: str, namespace: str = "") -> Any:
        where = ["--namespace", namespace or self.namespace]
        return json.loads(run(*self.kubectl, "get", what, *more, *where, "--output", "json"))


@pytest.fixture(scope="module")
def release(helm: str, kubectl: list[str], kubeconfig: str, images: tuple[str, str]) -> Iterator[Release]:
    tail = uuid.uuid4().hex[:6]
    namespace, served = f"chart-test-{tail}", f"chart-jobs-{tail}"
    for name in (namespace, served):
        run(*kubectl, "create", "namespace", name)
        run(*kubectl, "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    repository, _, tag = images[0].rpartition(":")
    values: Object = {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Always"},
        "trainer": {"image": images[1]},
        "watchNamespaces": [served],
        "replicas": 2,
        "podDisruptionBudget": {"enabled": True},
    }
    flags = ["--kubeconfig", kubeconfig] if kubeconfig else []
    made = Release(f"r{tail}", namespace, served, [helm, *flags], kubectl, values)
    owner = ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace")
    before: dict[str, dict[str, str]] = {}
    for crd in CRDS:
        found = subprocess.run([*kubectl, "get", "crd", crd, "-o", "json"], capture_output=True, text=True)
        before[crd] = json.loads(found.stdout)["metadata"].get("annotations", {}) if found.returncode == 0 else {}
    yield made
    subprocess.run([*made.helm, "uninstall", made.name, "--namespace", namespace], capture_output=True, timeout=120)
    for name in (namespace, served):
        subprocess.run([*kubectl, "delete", "namespace", name, "--wait=false"], capture_output=True, timeout=60)
    # Others on this cluster may use the CRDs as well: they stay, as they were, and with the owner that they had.
    run(*kubectl, "apply", "--server-side", "--force-conflicts", "-f", CHART / "files/crds")
    for crd, had in before.items():
        restored = [f"{name}={had[name]}" if name in had else f"{name}-" for name in owner]
        run(*kubectl, "annotate", "crd", crd, "--overwrite", *restored)


@pytest.fixture(scope="module")
def installed(release: Release) -> Release:
    said = release.upgrade()
    assert f"serves the namespaces {release.served}" in said
    return release


def test_operator_runs_restricted(installed: Release) -> None:
    pods = installed.get("pods", "--selector", "app.kubernetes.io/component=operator")["items"]
    assert len(pods) == 2
    for pod in pods:
        (status,) = pod["status"]["containerStatuses"]
        assert status["ready"]
        assert status["restartCount"] == 0
    lease = installed.get("lease", f"{installed.name}-adaptrain-operator")
    assert lease["spec"]["holderIdentity"] in [pod["metadata"]["name"] for pod in pods]


def test_helm_test(installed: Release) -> None:
    said = run(*installed.helm, "test", installed.name, "--namespace", installed.namespace, "--timeout", "90s")
    assert "Succeeded" in said
    pods = installed.get("pods")["items"]
    assert not [pod for pod in pods if pod["metadata"]["name"].endswith("-test")]


def test_operator_may_do_what_it_does(installed: Release) -> None:
    """Everything that one job takes is made, and no request is refused."""
    run(*installed.kubectl, "apply", "--namespace", installed.served, "-f", "-", give=JOB)
    kinds = "pods,services,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies"

    def made() -> bool:
        children = installed.get(
            kinds, "--selector", "adaptrain.io/job-name=kept", namespace=installed.served
        )["items"]  # fmt: skip
        return {child["kind"] for child in children} == {
            "Pod", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy",
        } and len([child for child in children if child["kind"] == "Pod"]) == 2  # fmt: skip

    until(made, "the job's children")
    # A job whose life is over is deleted, which takes a right of its own, as does its eviction of pods.
    patch = json.dumps({"spec": {"suspend": True}})
    words = ["patch", "adaptivetrainingjob", "kept", "--namespace", installed.served, "--type", "merge", "-p", patch]
    run(*installed.kubectl, *words)
    until(lambda: not installed.get("pods", namespace=installed.served)["items"], "suspended")
    until(
        lambda: "Suspended" in json.dumps(installed.get("adaptivetrainingjob", "kept", namespace=installed.served)),
        "status says so",
    )
    selector = ["--selector", "app.kubernetes.io/component=operator", "--tail=-1", "--namespace", installed.namespace]
    log = run(*installed.kubectl, "logs", *selector)
    assert "orbidden" not in log, log
    assert "can't be read" not in log, log


def test_operator_may_do_nothing_else(installed: Release) -> None:
    def rights(namespace: str) -> dict[str, set[str]]:
        words = ["auth", "can-i", "--list", "--as", installed.account, "--namespace", namespace]
        groups = [f"system:serviceaccounts:{installed.namespace}", "system:serviceaccounts", "system:authenticated"]
        found: dict[str, set[str]] = {}
        text = run(*installed.kubectl, *words, *(f"--as-group={group}" for group in groups))
        for line in text.splitlines()[1:]:
            resource, *rest = line.split("[")
            if resource.strip():
                found.setdefault(resource.strip(), set()).update(rest[-1].rstrip("]").split())
        # What every account has.
        return {name: verbs for name, verbs in found.items() if not name.startswith("self")}

    nodes = {"nodes": {"list", "watch"}}
    wanted = {f"{name}.{group}".removesuffix("."): verbs for (group, name), verbs in NAMESPACED.items()}
    wanted = {name.replace("/status.adaptrain.io", ".adaptrain.io/status"): verbs for name, verbs in wanted.items()}
    assert rights(installed.served) == wanted | nodes
    assert rights(installed.namespace) == nodes | {"leases.coordination.k8s.io": {"create", "get", "update"}}
    assert rights("kube-node-lease") == nodes | {"leases.coordination.k8s.io": {"get"}}
    assert rights("kube-system") == nodes


def test_gpu_example_asks_for_gpus(installed: Release) -> None:
    nodes = json.loads(run(*installed.kubectl, "get", "nodes", "--output", "json"))["items"]
    if not any("nvidia.com/gpu" in node["status"]["allocatable"] for node in nodes):
        pytest.skip("no node of this cluster has a GPU, real or pretended")
    where = ["--namespace", installed.served]
    run(*installed.kubectl, "apply", *where, "-f", CHART.parents[1] / "examples/gpu.yaml")

    def pods(role: str) -> list[Object]:
        selector = f"adaptrain.io/job-name=digits-gpu,adaptrain.io/role={role}"
        return list(installed.get("pods", "--selector", selector, namespace=installed.served)["items"])

    until(lambda: [pod.get("nodeName") for pod in (p["spec"] for p in pods("worker"))].count(None) == 0
          and len(pods("worker")) == 2, "two workers on nodes")  # fmt: skip
    for role, gpus in (("worker", "1"), ("coordinator", None)):
        for pod in pods(role):
            (container,) = pod["spec"]["containers"]
            assert container["resources"].get("limits", {}).get("nvidia.com/gpu") == gpus
    run(*installed.kubectl, "delete", *where, "-f", CHART.parents[1] / "examples/gpu.yaml", "--wait=false")


def test_upgrade_brings_a_changed_crd_and_keeps_jobs(installed: Release, tmp_path: Path) -> None:
    before = installed.get("adaptivetrainingjob", "kept", namespace=installed.served)["metadata"]["uid"]
    chart = tmp_path / "adaptrain"
    copytree(CHART, chart)
    (file,) = (chart / "files/crds").glob("*training*.yaml")
    text = file.read_text()
    assert text.count("description: Optimizer steps applied.") >= 1
    file.write_text(text.replace("description: Optimizer steps applied.", "description: Steps of the optimizer."))
    installed.upgrade(chart, logLevel="DEBUG")
    (version,) = installed.get("crd", CRDS[0])["spec"]["versions"]
    columns = {column["name"]: column.get("description") for column in version["additionalPrinterColumns"]}
    assert columns["Step"] == "Steps of the optimizer."
    after = installed.get("adaptivetrainingjob", "kept", namespace=installed.served)["metadata"]["uid"]
    assert after == before
    run(*installed.helm, "test", installed.name, "--namespace", installed.namespace, "--timeout", "90s")


def test_uninstall_keeps_crd_and_jobs(installed: Release) -> None:
    run(*installed.helm, "uninstall", installed.name, "--namespace", installed.namespace, "--wait")
    for crd in CRDS:
        assert installed.get("crd", crd)["metadata"].get("deletionTimestamp") is None
    assert installed.get("adaptivetrainingjob", "kept", namespace=installed.served)["metadata"]["name"] == "kept"
    left = installed.get("deployments,services,configmaps,roles,rolebindings,networkpolicies,poddisruptionbudgets")
    assert [one["metadata"]["name"] for one in left["items"]] == ["kube-root-ca.crt"]
    # And back again: what was kept is taken over.
    installed.upgrade()
    assert installed.get("adaptivetrainingjob", "kept", namespace=installed.served)
