"""Jobs on a cluster of real nodes, disturbed from outside, and what must hold of them. For tests and benchmarks alike.

The nodes of the local cluster are processes of this machine, so a worker's process can be stopped or killed as a
kernel would, and what the workers write to their volume can be read here.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from adaptrain.data.registry import load_data
from adaptrain.elastic.state.sample_log import FOLDER, read_times
from adaptrain_api.components import DataSource

from localcluster.api import Cluster
from tests.e2e.cluster_api import Api, Object, until
from tests.e2e.local_jobs import check_samples

ROOT = Path(__file__).resolve().parents[2]
JOBS = "/apis/adaptrain.io/v1alpha1"
BATCH = 64
MODELS = "e2e-models"

MODEL = '''
import time

import torch
from torch import nn


class Paced(nn.Module):
    """Takes its time, as on an accelerator; after so many steps it may fail, or eat memory."""

    def __init__(self, seconds, fails_after, eats_after):
        super().__init__()
        self.seconds, self.fails_after, self.eats_after = seconds, fails_after, eats_after
        self.steps, self.eaten = 0, []
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
            self.steps += 1
            if self.fails_after and self.steps > self.fails_after:
                raise RuntimeError("this model was made to fail")
            while self.eats_after and self.steps > self.eats_after:
                self.eaten.append(torch.ones(10_000_000))
        return self.layers(x)


def mlp(seconds=0.05, fails_after=0, eats_after=0):
    return Paced(seconds, fails_after, eats_after)
'''


@dataclass
class Site:
    """An operator of this checkout, and a namespace for its jobs that enforces ``restricted``."""

    cluster: Cluster
    api: Api
    namespace: str
    system: str
    release: str
    operator_node: str
    trainer_image: str

    def kubectl(self, *words: str, give: str | None = None, fails: bool = False, seconds: float = 90) -> str:
        command = [str(self.cluster.tool("kubectl")), "--kubeconfig", str(self.cluster.kubeconfig), *words]
        done = subprocess.run(command, input=give, capture_output=True, text=True, timeout=seconds)
        assert (done.returncode != 0) == fails, f"{words}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.cluster.status().nodes]

    def pods(self, namespace: str, selector: str) -> list[Object]:
        found: list[Object] = self.api.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")["items"]
        return found

    def operator(self) -> Object:
        """The operator's pod."""
        return until("the operator's pod", lambda: self.pods(self.system, "app.kubernetes.io/component=operator"))[0]

    def kill_operator(self) -> bool:
        """SIGKILL the operator; whether it ran.

        The kubelet waits ever longer before it starts a container again, up to five minutes: one that was killed twice
        loses its pod instead, with no grace, and gets another one at once.
        """
        pod = self.operator()
        if sum(container["restartCount"] for container in pod["status"].get("containerStatuses", [])) > 1:
            path = f"/api/v1/namespaces/{self.system}/pods/{name_of(pod)}"
            return self.api("DELETE", path, {"gracePeriodSeconds": 0})[0] == 200
        try:
            signal_pod(pod, signal.SIGKILL)
        except (AssertionError, ProcessLookupError):  # it has no process now
            return False
        return True

    def apply(self, *objects: Object) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "-n", self.namespace, "-f", "-", give=text)

    def claim(self, name: str) -> Path:
        """A volume claim; returns the folder of this machine that is its volume."""
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
        return self.volume(name)

    def volume(self, claim: str) -> Path:
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{claim}"
        bound = until(f"{claim} is bound", lambda: self.api.get(path)["spec"].get("volumeName"))
        folder = self.api.get(f"/api/v1/persistentvolumes/{bound}")["spec"]["hostPath"]["path"]
        return Path(folder)

    def job(self, name: str, traced: bool = True, workers: Object | None = None, **spec: Any) -> "ClusterJob":
        """Apply a paced job that goes on until it is stopped; ``spec`` replaces parts of it."""
        job = ClusterJob(self, name)
        folder = self.claim(name) / f"{self.namespace}.{name}"
        if traced:
            # Workers run as another user, and whoever makes the folder first must leave it open to them.
            for path in (folder, folder / FOLDER):
                path.mkdir(exist_ok=True)
                path.chmod(0o777)
        self.apply(manifest(name, workers or {}, spec))
        return job


def manifest(name: str, workers: Object, spec: Object) -> Object:
    base: Object = {
        "workers": {
            "min": 1,
            "max": 4,
            "replicas": 2,
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1500Mi"}},
            "env": [{"name": "PYTHONPATH", "value": "/models"}],
            "volumes": [{"name": "models", "configMap": {"name": MODELS}}],
            "volumeMounts": [{"name": "models", "mountPath": "/models"}],
        }
        | workers,
        "model": {"name": "paced:mlp"},
        "data": {"name": "digits"},
        # The image of these tests has the same name from run to run.
        "imagePullPolicy": "Always",
        "phases": [
            {
                "name": "train",
                "type": "supervised",
                "optimizer": {"name": "adamw", "learningRate": 0.001},
                "batch": {"size": BATCH},
                "stop": {"steps": 1000000},
            }
        ],
        "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": name}}, "everySeconds": 5},
    }
    given = {key: value for key, value in (base | spec).items() if value is not None}
    return {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "AdaptiveTrainingJob",
        "metadata": {"name": name},
        "spec": given,
    }


@dataclass
class ClusterJob:
    """A job on the cluster."""

    site: Site
    name: str

    @property
    def path(self) -> str:
        return f"{JOBS}/namespaces/{self.site.namespace}/adaptivetrainingjobs/{self.name}"

    @property
    def folder(self) -> Path:
        return self.site.volume(self.name) / f"{self.site.namespace}.{self.name}"

    @property
    def status(self) -> Object:
        found: Object = self.site.api.get(self.path).get("status", {})
        return found

    def condition(self, type: str) -> Object:
        """A condition; empty if nothing was said yet."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == type), {})

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint, as the condition tells it; 0 if there is none."""
        found = re.search(r"step (\d+) is saved", self.condition("CheckpointAvailable").get("message", ""))
        return int(found[1]) if found else 0

    def pods(self, role: str) -> list[Object]:
        return self.site.pods(
            self.site.namespace, f"adaptrain.io/job-name={self.name},adaptrain.io/role={role}"
        )  # fmt: skip

    @property
    def workers(self) -> list[Object]:
        """Pods of workers that run or will run, the oldest first."""
        found = [pod for pod in self.pods("worker") if _active(pod)]
        return sorted(found, key=lambda pod: int(pod["metadata"]["name"].rpartition("-")[2]))

    @property
    def coordinator(self) -> Object | None:
        """The pod of the newest coordinator, if it runs or will run."""
        found = [pod for pod in self.pods("coordinator") if _active(pod)]
        return max(found, key=lambda pod: int(pod["metadata"]["name"].rpartition("-")[2]), default=None)

    def settled(self, size: int = 2, seconds: float = 60) -> list[Object]:
        """Wait until exactly so many workers train together, with nobody else about."""

        def look() -> list[Object] | None:
            status, workers = self.status, self.workers
            whole = len(workers) == size and all(pod["status"].get("phase") == "Running" for pod in workers)
            trains = status.get("phase") == "Running" and status.get("readyReplicas") == size
            return workers if whole and trains and self.coordinator is not None else None

        found: list[Object] = until(f"{self.name} has {size} workers", look, seconds, self.tell)
        return found

    def advances(self, seconds: float = 30, steps: int = 20) -> int:
        """Wait until so many more steps were applied; returns the step."""
        begin = self.step

        def look() -> int | None:
            return now if (now := self.step) >= begin + steps else None

        found: int = until(f"{self.name} goes on from step {begin}", look, seconds, self.tell)
        return found

    @property
    def step(self) -> int:
        """The newest step that a worker of now has applied."""
        return max((step for pod in self.workers for _, step in self.times(name_of(pod))[-1:]), default=0)

    def times(self, worker: str) -> list[tuple[float, int]]:
        """When a worker applied which step: (Unix time in seconds, step)."""
        trace = self.folder / FOLDER
        return read_times(trace, worker) if (trace / f"{worker}.jsonl").exists() else []

    def stall(self, worker: str, event: float, window: float = 30.0) -> float:
        """The longest gap between a worker's steps in a time after an event, less its median step; seconds."""
        return longest_stall(self.times(worker), event, window)

    def check_samples(self) -> int:
        """Every sample was applied exactly once in each pass of the lineage that goes on. Returns the steps."""
        trace = self.folder / FOLDER
        texts = {path.name: path.read_text() for path in sorted(trace.glob("*.jsonl"))}
        # The last steps may be half written, and a worker that was cut off may have gone on by itself.
        last = self.step - 5 if self.workers else None
        with tempfile.TemporaryDirectory() as scratch:
            for name, text in texts.items():
                lines = [line for line in text.splitlines() if line.endswith("}")]
                kept = [line for line in lines if last is None or json.loads(line)["step"] <= last]
                (Path(scratch) / name).write_text("\n".join(kept))
            samples = len(load_data(DataSource(name="digits")).train)
            return check_samples(Path(scratch), samples, BATCH)

    def spread(self) -> dict[str, Object]:
        """Bring two workers to different nodes; returns them by node."""

        def look() -> dict[str, Object] | None:
            workers = self.settled(2)
            if len(by_node := {node_of(pod): pod for pod in workers}) == 2:
                return by_node
            self.delete(workers[-1])
            self.settled(2)
            return None

        found: dict[str, Object] = until("workers on two nodes", look, 120, self.tell)
        return found

    def move_coordinator(self, node: str) -> None:
        """A coordinator that is lost comes up elsewhere, if there is an elsewhere."""

        def look() -> bool:
            pod = self.coordinator
            if pod is None or not (placed := node_of(pod)):
                return False
            if placed == node:
                return True
            self.delete(pod)
            return False

        until(f"the coordinator is on {node}", look, 60, self.tell)
        # It is heard once the step that it tells moves on.
        before = self.status["step"]
        until("the coordinator is heard", lambda: self.status["step"] > before, 30, self.tell)
        self.settled(2)

    def delete(self, pod: Object) -> None:
        """Delete a pod with no grace at all."""
        path = f"/api/v1/namespaces/{self.site.namespace}/pods/{name_of(pod)}"
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        self.site.api("DELETE", path, options)

    def patch(self, spec: Object) -> None:
        status, body = self.site.api("PATCH", self.path, {"spec": spec}, "application/merge-patch+json")
        assert status == 200, body

    def remove(self) -> None:
        """Delete the job, its pods with no grace, and its volume."""
        self.site.api("DELETE", self.path, {"propagationPolicy": "Background"})
        until(f"{self.name} is gone", lambda: self.site.api("GET", self.path)[0] == 404)
        for role in ("worker", "coordinator"):
            for pod in self.pods(role):
                self.delete(pod)
        self.site.api("DELETE", f"/api/v1/namespaces/{self.site.namespace}/persistentvolumeclaims/{self.name}")

    def tell(self) -> str:
        """All that helps to see what went wrong."""
        words = ("-n", self.site.namespace)
        told = [json.dumps(self.status, indent=1)]
        told.append(self.site.kubectl("get", "pods", *words, "-o", "wide"))
        told.append(self.site.kubectl("get", "events", *words, "--sort-by=.lastTimestamp")[-3000:])
        for pod in (*self.pods("worker"), *self.pods("coordinator")):
            try:
                log = self.site.kubectl("logs", *words, name_of(pod), "--tail=15", seconds=10)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                log = str(error)[-300:]
            told.append(f"--- {name_of(pod)}\n{log}")
        return "\n".join(told)


def _active(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") in ("Pending", "Running")


def name_of(pod: Object) -> str:
    return str(pod["metadata"]["name"])


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


def longest_stall(times: list[tuple[float, int]], event: float, window: float) -> float:
    gaps = [(a, b, b - a) for (a, _), (b, _) in pairwise(times)]
    near = [gap for a, b, gap in gaps if b >= event and a <= event + window]
    assert near, "no step was applied after the event"
    # What comes before the event is an undisturbed pace.
    before = [gap for _, b, gap in gaps if b < event] or [gap for *_, gap in gaps]
    return max(near) - statistics.median(before)


def identity(pod: Object, pids: bool = True) -> tuple[object, ...]:
    """What stays the same as long as nothing of a pod is restarted."""
    containers = [(c["containerID"], c["restartCount"]) for c in pod["status"]["containerStatuses"]]
    return (pod["metadata"]["uid"], *containers, *(processes(pod) if pids else ()))


def processes(pod: Object) -> list[int]:
    """The processes in a pod's containers, as this machine numbers them; the pause process is not one."""
    uid, found = pod["metadata"]["uid"], []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                inside = f"pod{uid}" in (entry / "cgroup").read_text()
                if inside and b"pause" not in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
    return sorted(found)


def signal_pod(pod: Object, number: int) -> None:
    """Signal all processes of a pod from outside, as the kernel would."""
    pids = processes(pod)
    assert pids, f"{name_of(pod)} has no process"
    for pid in pids:
        os.kill(pid, number)
