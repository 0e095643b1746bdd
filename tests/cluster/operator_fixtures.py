"""The operator as a process against a real API server, with pods on simulated nodes."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import HTTP_PORT
from adaptrain_api.contracts.proof import Gate
from adaptrain_operator.core import naming

from tests.support.manifests import small_training

Object = dict[str, Any]

JOBS = "adaptivetrainingjobs"
COMPLETED = json.dumps({"outcome": "completed", "step": 7, "epoch": 1, "model": "best.safetensors"})
MERGE = "application/merge-patch+json"


def manifest(name: str, **spec: Any) -> Object:
    workers = {
        "min": 1,
        "max": 4,
        "replicas": 2,
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        "affinity": simulated(),
    }
    workers |= spec.pop("workers", {})
    return {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "AdaptiveTrainingJob",
        "metadata": {"name": name},
        "spec": {
            "image": "registry.invalid/trainer:test",
            "workers": workers,
            **small_training(),
        }
        | spec,
    }


def simulated() -> Object:
    """Workers belong on simulated nodes: real ones would try to pull their image."""
    term = {"matchExpressions": [{"key": "adaptrain.io/simulated", "operator": "Exists"}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def until(check: Callable[[], Any], seconds: float = 30, what: str = "") -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what or check}")
        time.sleep(0.2)


class Cluster:
    """A namespace of the test's own."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.jobs_path = f"/apis/adaptrain.io/v1alpha1/namespaces/{namespace}/{JOBS}"
        self.core = f"/api/v1/namespaces/{namespace}"

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        answer = self.api(method, path, body, kind=kind)
        assert answer.ok, f"{method} {path}: {answer.message}"
        return answer.body

    def create(self, name: str, **spec: Any) -> Object:
        made: Object = self.call("POST", self.jobs_path, manifest(name, **spec))
        return made

    def job(self, name: str) -> Object:
        found: Object = self.call("GET", f"{self.jobs_path}/{name}")
        return found

    def jobs(self) -> list[Object]:
        return list(self.call("GET", self.jobs_path)["items"])

    def patch(self, name: str, spec: Object) -> None:
        self.call("PATCH", f"{self.jobs_path}/{name}", {"spec": spec}, MERGE)

    def delete(self, name: str) -> None:
        self.call("DELETE", f"{self.jobs_path}/{name}", {"propagationPolicy": "Background"})

    def pods(self, job: str = "", role: str = "", phase: str = "") -> list[Object]:
        found = self.call("GET", f"{self.core}/pods")["items"]
        return [
            pod
            for pod in found
            if (not job or pod["metadata"]["labels"].get("adaptrain.io/job-name") == job)
            and (not role or pod["metadata"]["labels"].get("adaptrain.io/role") == role)
            and (not phase or pod["status"].get("phase") == phase)
        ]

    def workers(self, job: str) -> list[str]:
        return sorted(
            pod["metadata"]["name"]
            for pod in self.pods(job, "worker", "Running")
            if "deletionTimestamp" not in pod["metadata"]
        )

    def patch_pod_status(self, name: str, status: Object) -> None:
        self.call("PATCH", f"{self.core}/pods/{name}/status", {"status": status}, MERGE)

    def complete(self, pod: Object) -> None:
        """End a worker as the trainer ends one whose training is complete."""
        name = pod["metadata"]["name"]
        ended = {"exitCode": 0, "reason": "Completed", "message": COMPLETED, **_times()}
        status = {"name": "worker", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
        status["state"] = {"terminated": ended}
        self.patch_pod_status(name, {"phase": "Succeeded", "containerStatuses": [status]})

    def fail(self, pod: str, code: int, message: str) -> None:
        ended = {"exitCode": code, "reason": "Error", "message": message, **_times()}
        status = {"name": "worker", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
        status["state"] = {"terminated": ended}
        self.patch_pod_status(pod, {"phase": "Failed", "containerStatuses": [status]})

    def condition(self, job: str, type: str) -> tuple[str, str, str]:
        for one in self.job(job).get("status", {}).get("conditions", []):
            if one["type"] == type:
                return one["status"], one["reason"], one["message"]
        return "", "", ""


def _times() -> Object:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"startedAt": now, "finishedAt": now}


class Operator:
    """The operator as the kubelet would run it: started anew whenever it ends, if asked for."""

    def __init__(self, kubeconfig: str, namespace: str, folder: Path, identity: str = "only", **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / f"operator-{identity}.log"
        self._env = os.environ | {
            "KUBECONFIG": kubeconfig or os.environ.get("KUBECONFIG", ""),
            "ADAPTRAIN_OPERATOR_NAMESPACES": namespace,
            "ADAPTRAIN_OPERATOR_LEASE_NAMESPACE": namespace,
            "ADAPTRAIN_OPERATOR_IDENTITY": identity,
            "ADAPTRAIN_OPERATOR_HOST": "127.0.0.1",
            "ADAPTRAIN_OPERATOR_PORT": str(self.port),
            **settings,
        }
        self.starts = 0
        self.process = self._start()
        self._kept = threading.Event()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "adaptrain_operator.main"], env=self._env, stderr=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self, seconds: float = 20) -> int:
        self.process.terminate()
        return self.process.wait(seconds)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            return int(refusal.code)
        except OSError:
            return 0

    def leads(self) -> bool:
        try:
            return "adaptrain_operator_leader 1.0" in self.metrics()
        except OSError:
            return False

    def writes(self) -> float:
        lines = [
            line for line in self.metrics().splitlines() if line.startswith("adaptrain_operator_api_requests_total")
        ]
        return sum(float(line.split()[-1]) for line in lines if 'verb="GET"' not in line and 'kind="Lease"' not in line)


class Coordinator:
    """Answers in a simulated coordinator pod's place, from an address of the loopback network."""

    _addresses = iter(range(2, 250))

    def __init__(self, cluster: Cluster, job: str, number: int) -> None:
        self.address = f"127.77.0.{next(self._addresses)}"
        self.number = number
        self.progress: Object = {"number": number, "state": "running", "step": 1}
        self._cluster, self._job = cluster, job
        pod = until(lambda: [p for p in cluster.pods(job, "coordinator", "Running") if self._mine(p)], what="a pod")[0]
        name = naming.token_secret(job, cluster.job(job)["metadata"]["uid"])
        secret = cluster.call("GET", f"{cluster.core}/secrets/{name}")
        self._gate = Gate(base64.b64decode(secret["data"]["token"]).decode())
        self._server = ThreadingHTTPServer((self.address, HTTP_PORT), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        cluster.patch_pod_status(pod["metadata"]["name"], {"podIP": self.address, "podIPs": [{"ip": self.address}]})

    def _mine(self, pod: Object) -> bool:
        return str(pod["metadata"]["labels"]["adaptrain.io/coordinator"]) == str(self.number)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proved = outer._gate.admits(self.headers.get("Authorization", ""), "GET", self.path)
                body = b"" if proved is None else json.dumps(outer.progress).encode()
                self.send_response(200 if proved is not None else 401)
                if proved is None:
                    self.send_header("WWW-Authenticate", outer._gate.challenge())
                else:
                    self.send_header("Authentication-Info", proved.answer(200, body))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def members(self, *names: str, **more: Any) -> None:
        """Have these pods take part; all that run, if none is named."""
        pods = self._cluster.pods(self._job, "worker", "Running")
        ids = [
            {"id": pod["metadata"]["uid"], "name": pod["metadata"]["name"], "step": 1, "joined": 0}
            for pod in pods
            if not names or pod["metadata"]["name"] in names
        ]
        self.progress = {**self.progress, "members": ids, **more}

    def stop(self) -> None:
        """Answer no more; harmless a second time."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@pytest.fixture(scope="session")
def simulated_nodes(api: Any, crd: str) -> None:
    """At least four simulated nodes."""
    selector = "labelSelector=adaptrain.io/simulated"
    if len(api("GET", f"/api/v1/nodes?{selector}").body["items"]) >= 4:
        return
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.fail("these tests need four nodes simulated by kwok, labelled adaptrain.io/simulated")
    from localcluster.api import Cluster as Local

    Local().node_fake(4)


@pytest.fixture
def cluster(api: Any, crd: str, simulated_nodes: None) -> Iterator[Cluster]:
    name = f"operator-test-{uuid.uuid4().hex[:8]}"
    answer = api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert answer.ok, answer.message
    made = Cluster(api, name)
    until(lambda: api("GET", f"{made.core}/serviceaccounts/default").ok)
    yield made
    api("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def start(kubeconfig: str, cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts operators, and ends them after the test."""
    started: list[Operator] = []

    def begin(identity: str = "only", **settings: str) -> Operator:
        started.append(Operator(kubeconfig, cluster.namespace, tmp_path, identity, **settings))
        return started[-1]

    yield begin
    for operator in started:
        if operator.process.poll() is None:
            operator.kill()
        text = operator.log.read_text()
        assert "a decision failed" not in text, text[-4000:]


@pytest.fixture
def operator(start: Callable[..., Operator]) -> Operator:
    made = start()
    until(made.leads, 30, "the operator leads")
    return made
