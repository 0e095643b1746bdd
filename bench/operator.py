"""How fast 200 jobs of 3 pods run on simulated nodes, beside a bare script that makes the same objects.

``CLUSTER=local`` (default) brings the local cluster up and simulates nodes; ``CLUSTER=current`` takes the kubeconfig's
cluster, which must have nodes with the taint ``kwok.x-k8s.io/node``. Coordinators on simulated nodes are never reached,
which must replace nothing. Ends with one line of JSON.
"""

import argparse
import asyncio
import atexit
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import aiohttp
from adaptrain_api.training.job import TrainingJobSpec
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects import owned
from adaptrain_operator.core.objects.pods import coordinator_pod, worker_pod
from adaptrain_operator.core.observed import Job
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError
from adaptrain_operator.kube.kinds import APPLIED, JOB, POD, Kind

from tests.support.manifests import small_training

Object = dict[str, Any]

NAMESPACES = Kind("Namespace", "/api/v1", "namespaces", namespaced=False)
WORKERS = 2
PODS_PER_JOB = WORKERS + 1
SECONDS, RATIO, MEGABYTES = 45.0, 1.5, 120.0
OURS = {JOB.plural, POD.plural, "events", *(kind.plural for kind in APPLIED.values())}
WRITES = {"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}


def spec() -> Object:
    return {
        "image": "registry.invalid/adaptrain-trainer:bench",
        "workers": {
            "min": 1,
            "max": 4,
            "replicas": WORKERS,
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        },
        **small_training(epochs=10),
    }


async def bounded(work: Iterable[Coroutine[Any, Any, Any]], limit: int = 16) -> None:
    slots = asyncio.Semaphore(limit)

    async def run(one: Coroutine[Any, Any, Any]) -> None:
        async with slots:
            await one

    await asyncio.gather(*(run(one) for one in work))


async def running(client: Client, namespace: str) -> int:
    """Pods that run, counted without parsing them: the benchmark must not take the processor from what it measures."""
    text = await raw(client, f"/api/v1/namespaces/{namespace}/pods?resourceVersion=0")
    return text.count(b'"phase":"Running"')


async def raw(client: Client, path: str) -> bytes:
    api = client._api
    headers = {"Accept": "application/json"}
    await api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
    answer = await api.call_api(
        "GET", api.configuration.host + path, headers, _request_timeout=aiohttp.ClientTimeout(total=60)
    )
    return await answer.read()


async def until_running(client: Client, namespace: str, wanted: int, began: float, limit: float = 900) -> float:
    while True:
        count = await running(client, namespace)
        took = time.monotonic() - began
        if count >= wanted:
            return took
        if took > limit:
            raise SystemExit(f"only {count} of {wanted} pods run after {limit:.0f} s")
        await asyncio.sleep(0.5)


async def make_namespace(client: Client) -> str:
    name = f"bench-operator-{uuid.uuid4().hex[:6]}"
    await client.create(NAMESPACES, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    # Pods are refused until the namespace has its default ServiceAccount.
    await asyncio.sleep(2)
    return name


async def remove_namespace(client: Client, name: str) -> None:
    found = await client.get(NAMESPACES, None, name)
    await client._request("DELETE", NAMESPACES, NAMESPACES.path(None, name), body={"gracePeriodSeconds": 0})
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if (await client.get(NAMESPACES, None, name))["metadata"]["uid"] != found["metadata"]["uid"]:
                return
        except ApiError:
            return
        await asyncio.sleep(1)


async def bare(client: Client, namespace: str, jobs: int) -> float:
    """The same objects, made by a script that knows what it wants."""
    parsed = TrainingJobSpec.model_validate(spec())

    async def make(number: int) -> None:
        job = Job(f"job-{number}", namespace, str(uuid.uuid4()), 1, 0.0, False, parsed, TrainingJobStatus())
        # No owner exists, and with one that doesn't, the collector would take them away.
        first = [owned.service_account(job), owned.config_map(job), owned.token_secret(job, "t" * 64)]
        then = [owned.coordinator_service(job, 1), owned.disruption_budget(job), *owned.network_policies(job)]
        image = parsed.image or ""
        pods = [
            coordinator_pod(job, 1, image, None, ()),
            *(worker_pod(job, n, image, ()) for n in range(WORKERS)),
        ]
        for child in (*first, *then, *pods):
            del child["metadata"]["ownerReferences"]
        await asyncio.gather(*(client.create(APPLIED[child["kind"]], namespace, child) for child in first))
        await asyncio.gather(
            *(client.create(APPLIED[child["kind"]], namespace, child) for child in then),
            *(client.create(POD, namespace, pod) for pod in pods),
        )

    began = time.monotonic()
    await bounded(make(number) for number in range(jobs))
    return await until_running(client, namespace, jobs * PODS_PER_JOB, began)


async def operated(client: Client, namespace: str, jobs: int) -> float:
    manifest = {"apiVersion": naming.API_VERSION, "kind": JOB.name, "spec": spec()}
    began = time.monotonic()
    await bounded(
        client.create(JOB, namespace, {**manifest, "metadata": {"name": f"job-{number}"}}) for number in range(jobs)
    )
    return await until_running(client, namespace, jobs * PODS_PER_JOB, began)


def writes(metrics: bytes) -> float:
    """Write requests to kinds that the operator writes, as the API server counted them."""
    total = 0.0
    for labels, value in re.findall(r"^apiserver_request_total\{(.*?)\} (\S+)$", metrics.decode(), re.MULTILINE):
        given = dict(re.findall(r'(\w+)="(.*?)"', labels))
        # The status of pods and budgets is others' to write.
        foreign = given.get("subresource") and given.get("resource") != JOB.plural
        if given.get("verb") in WRITES and given.get("resource") in OURS and not foreign:
            total += float(value)
    return total


def own_writes(text: str) -> float:
    found = re.findall(r"^adaptrain_operator_api_requests_total\{(.*?)\} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for labels, value in found if 'verb="GET"' not in labels and 'kind="Lease"' not in labels)


async def scrape(port: int) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        return await answer.text()


def memory(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", text)
    assert match is not None
    return int(match.group(1)) / 1024


def start(namespace: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "ADAPTRAIN_OPERATOR_NAMESPACES": namespace,
        "ADAPTRAIN_OPERATOR_LEASE_NAMESPACE": namespace,
        "ADAPTRAIN_OPERATOR_PORT": str(port),
    }
    return subprocess.Popen([sys.executable, "-m", "adaptrain_operator.main"], env=env, stderr=log.open("wb"))


async def until_leading(port: int) -> None:
    for _ in range(120):
        try:
            if "adaptrain_operator_leader 1.0" in await scrape(port):
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit("the operator did not take the lead within 60 s")


async def measure(arguments: argparse.Namespace) -> bool:
    client = await Client.connect("adaptrain-bench")
    jobs = arguments.jobs
    names: list[str] = []
    try:
        names.append(await make_namespace(client))
        peer = await bare(client, names[-1], jobs)
        print(f"bare script: {jobs * PODS_PER_JOB} pods run after {peer:.1f} s", flush=True)
        await remove_namespace(client, names.pop())

        names.append(await make_namespace(client))
        log = Path(os.environ.get("TMPDIR", "/tmp")) / "adaptrain-bench-operator.log"
        process = start(names[-1], arguments.port, log)
        try:
            await until_leading(arguments.port)
            took = await operated(client, names[-1], jobs)
            print(f"operator: {jobs * PODS_PER_JOB} pods run after {took:.1f} s (log: {log})", flush=True)
            await asyncio.sleep(arguments.settle)
            before, own_before = writes(await raw(client, "/metrics")), own_writes(await scrape(arguments.port))
            await asyncio.sleep(arguments.idle)
            idle = writes(await raw(client, "/metrics")) - before
            own_idle = own_writes(await scrape(arguments.port)) - own_before
            pods = await running(client, names[-1])
            peak, now = memory(process.pid, "VmHWM"), memory(process.pid, "VmRSS")
            print(
                f"idle {arguments.idle} s: {own_idle:.0f} writes besides the Lease by the operator"
                f" ({idle:.0f} in the cluster); RSS {now:.0f} MB, at most {peak:.0f} MB; {pods} pods",
                flush=True,
            )
        finally:
            process.terminate()
            process.wait(30)
    finally:
        for name in names:
            await remove_namespace(client, name)
        await client.close()
    same = pods == jobs * PODS_PER_JOB
    ok = took <= SECONDS and took <= RATIO * peer and peak <= MEGABYTES and own_idle == 0 and same
    line = {"name": "operator", "value": round(took, 2), "unit": "s", "peer": "bare asyncio script"}
    line |= {"peer_value": round(peer, 2), "ratio": round(took / peer, 3), "ok": ok}
    print(json.dumps(line))
    return ok


def simulate(nodes: int) -> None:
    """Bring the local cluster up with simulated nodes. Others are cordoned: pods on them would wait for the image."""
    from localcluster.api import Cluster

    cluster = Cluster()
    cluster.up(nodes=0)
    cluster.node_fake(nodes)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    kubectl = str(cluster.tool("kubectl"))

    def call(*arguments: str) -> str:
        return subprocess.run([kubectl, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

    call("apply", "-f", "crds")
    call("wait", "-f", "crds", "--for=condition=Established")
    listed = call(
        "get",
        "nodes",
        "-l",
        "adaptrain.io/simulated!=true",
        "--field-selector",
        "spec.unschedulable!=true",
        "-o",
        "name",
    )
    if real := listed.split():
        call("cordon", *real)
        atexit.register(call, "uncordon", *real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=20, help="simulated nodes (CLUSTER=local)")
    parser.add_argument("--port", type=int, default=18091, help="the operator's own HTTP port")
    parser.add_argument("--settle", type=float, default=20)
    parser.add_argument("--idle", type=float, default=30)
    arguments = parser.parse_args()
    if os.environ.get("CLUSTER", "local") == "local":
        simulate(arguments.nodes)
    return 0 if asyncio.run(measure(arguments)) else 1


if __name__ == "__main__":
    sys.exit(main())
