"""The chart of this checkout, installed on the local cluster while tests or benchmarks need it."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from localcluster.api import Cluster
from tests.e2e.cluster_api import Api, Object, until
from tests.e2e.cluster_jobs import MODEL, MODELS, ROOT, Site

CRDS = ("adaptivetrainingjobs.adaptrain.io", "architecturesearches.adaptrain.io")
OWNER = ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace")


@contextmanager
def installed(namespace: str = "adaptrain-e2e") -> Iterator[Site]:
    """The chart of this checkout on the local cluster, with its images; removed at the end.

    Another operator of the whole cluster, as the demo leaves one, sleeps meanwhile: two would both serve the jobs.
    """
    cluster = Cluster()
    nodes = cluster.status().nodes if _answers(cluster) else []
    if len(nodes) < 2 or not all(node.ready and node.state == "running" for node in nodes):
        cluster.up()
    images = {}
    for target in ("operator", "trainer"):
        cluster.image_build(f"adaptrain-{target}:e2e", target)
        images[target] = cluster.image_load(f"adaptrain-{target}:e2e")
    keeper = cluster.status().nodes[0].name
    site = Site(
        cluster, Api(cluster.kubeconfig), f"{namespace}-jobs", namespace, "adaptrain-e2e", keeper, images["trainer"]
    )
    sleeping = _put_to_sleep(site)
    before = {}
    for crd in CRDS:
        found, definition = site.api("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}")
        before[crd] = definition["metadata"].get("annotations", {}) if found == 200 else {}
    try:
        _install(site, images["operator"])
        yield site
    finally:
        _uninstall(site, before)
        for where, name, size in sleeping:
            site.kubectl("scale", "deployment", name, "-n", where, f"--replicas={size}")


def _answers(cluster: Cluster) -> bool:
    try:
        return Api(cluster.kubeconfig)("GET", "/version")[0] == 200
    except Exception:  # no kubeconfig, no server, or one that doesn't answer: all mean to bring it up
        return False


def _put_to_sleep(site: Site) -> list[tuple[str, str, int]]:
    selector = "app.kubernetes.io/name=adaptrain,app.kubernetes.io/component=operator"
    slept = []
    for one in site.api.get(f"/apis/apps/v1/deployments?labelSelector={selector}")["items"]:
        where, name, size = one["metadata"]["namespace"], one["metadata"]["name"], one["spec"].get("replicas", 1)
        if where != site.system and size:
            site.kubectl("scale", "deployment", name, "-n", where, "--replicas=0")
            slept.append((where, name, size))
    return slept


def _install(site: Site, operator_image: str) -> None:
    for name in (site.system, site.namespace):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        site.kubectl("apply", "-f", "-", give=json.dumps(made))
    repository, _, tag = operator_image.rpartition(":")
    values: Object = {
        # The tag stays the same from run to run, and a node may have an older image of that name.
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Always"},
        "trainer": {"image": site.trainer_image},
        "watchNamespaces": [site.namespace],
        # Where no test stops it: what becomes of jobs while their operator is away has tests of its own.
        "nodeSelector": {"kubernetes.io/hostname": site.operator_node},
    }
    helm = [str(site.cluster.tool("helm")), "--kubeconfig", str(site.cluster.kubeconfig)]
    flags = ["-n", site.system, "--take-ownership", "--force-conflicts", "--wait", "--timeout", "150s", "--values", "-"]
    done = subprocess.run(
        [*helm, "upgrade", "--install", site.release, str(ROOT / "charts/adaptrain"), *flags],
        input=json.dumps(values), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MODELS}, "data": {"paced.py": MODEL}}
    site.apply(models)
    _pull(site)


def _pull(site: Site) -> None:
    """Every node has the trainer's image before a test looks at a clock: the first pull is of gigabytes."""
    restricted: Object = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "pull", "image": site.trainer_image, "command": ["true"], "imagePullPolicy": "Always"}
    for node in site.nodes:
        spec = {
            "nodeName": node,
            "restartPolicy": "Never",
            "containers": [container | {"securityContext": restricted}],
        }
        site.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pull-{node}"}, "spec": spec})
    for node in site.nodes:
        path = f"/api/v1/namespaces/{site.namespace}/pods/pull-{node}"

        def pulled(path: str = path) -> bool:
            return bool(site.api.get(path)["status"]["phase"] == "Succeeded")

        def told(path: str = path) -> str:
            return json.dumps(site.api.get(path)["status"].get("containerStatuses"), indent=1)

        until(f"{node} has the image", pulled, 400, told)
        site.api("DELETE", path)


def _uninstall(site: Site, annotations: dict[str, dict[str, str]]) -> None:
    """Jobs first, while somebody obeys them; the CRDs stay, with the owner that they had."""
    for kind in ("asearch", "atj"):
        site.kubectl("delete", kind, "--all", "-n", site.namespace, "--wait=false", "--ignore-not-found")
    helm = [str(site.cluster.tool("helm")), "--kubeconfig", str(site.cluster.kubeconfig)]
    subprocess.run([*helm, "uninstall", site.release, "-n", site.system], capture_output=True, timeout=120)
    pods = ("pods", "--all", "-n", site.namespace)
    site.kubectl("delete", *pods, "--grace-period=0", "--force", "--ignore-not-found", "--wait=false")
    for name in (site.namespace, site.system):
        site.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
    for crd, before in annotations.items():
        owner = [f"{n}={before[n]}" if n in before else f"{n}-" for n in OWNER]
        site.kubectl("annotate", "crd", crd, "--overwrite", *owner)
    for name in (site.namespace, site.system):
        path = f"/api/v1/namespaces/{name}"
        until(f"{name} is gone", lambda path=path: site.api("GET", path)[0] == 404, 90)
