"""What the demo does once a cluster is there: install, train, resize, kill, and tell."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from examples.demo.clusters import CHECKOUT, Target
from examples.demo.kubectl import Kubectl

SYSTEM, NAMESPACE, JOB = "adaptrain-system", "adaptrain-demo", "digits"
POLL_SECONDS = 1.0
LIMIT_SECONDS = 1200.0
WORKERS = f"adaptrain.io/job-name={JOB},adaptrain.io/role=worker"


def play(target: Target) -> int:
    """Returns the exit code."""
    console = Console()
    kubectl = target.kubectl
    prometheus = target.prometheus() if target.prometheus is not None else None
    console.print("installing the chart")
    _install(target)
    kubectl("delete", "atj", JOB, "-n", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=60s")
    kubectl("delete", "pvc", JOB, "-n", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=60s")
    console.print(f"kubectl apply -n {NAMESPACE} -f examples/digits.yaml")
    kubectl("apply", "-n", NAMESPACE, "-f", str(CHECKOUT / "examples" / "digits.yaml"))
    story = Story(kubectl)
    with Live(console=console, refresh_per_second=2) as live:
        began = time.monotonic()
        while not story.over:
            if time.monotonic() - began > LIMIT_SECONDS:
                console.print(f"not finished in {LIMIT_SECONDS:.0f} s: see kubectl describe atj -n {NAMESPACE} {JOB}")
                return 1
            story.look()
            story.disturb()
            live.update(story.picture())
            time.sleep(POLL_SECONDS)
        live.update(story.picture())
    _tell(console, story, prometheus)
    return 0 if story.phase == "Succeeded" else 1


def _install(target: Target) -> None:
    kubectl = target.kubectl
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    repository, _, tag = target.operator_image.rpartition(":")
    values = {"image.repository": repository, "image.tag": tag, "trainer.image": target.trainer_image}
    flags = [word for key, value in values.items() for word in ("--set-string", f"{key}={value}")]
    # The CRDs stay when a release goes: this one takes them over from whoever installed them.
    taking_over = ("--take-ownership", "--force-conflicts")
    waiting = ("--wait", "--timeout", "180s")
    chart = str(CHECKOUT / "charts" / "adaptrain")
    kubectl.install("adaptrain", chart, "-n", SYSTEM, "--create-namespace", *taking_over, *waiting, *flags)


@dataclass
class Story:
    """What is seen of the job, and what is done to it."""

    kubectl: Kubectl
    job: dict[str, Any] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    killed: str | None = None
    _acts: int = 0
    _step: int = 0

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.job.get("status", {})
        return found

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    def look(self) -> None:
        self.job = self.kubectl.get("atj", JOB, "-n", NAMESPACE)
        self.pods = self.kubectl.get("pods", "-n", NAMESPACE, "-l", WORKERS)["items"]
        items = self.kubectl.get("events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={JOB}")["items"]
        items.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
        self.events = [f"{e.get('reason')}: {e.get('message') or e.get('note')}" for e in items[-5:]]

    def disturb(self) -> None:
        """Resize 2 → 3 → 2 and kill a worker, each once the job is at its size and has moved on."""
        acts: list[tuple[int, Callable[[], None]]] = [
            (2, lambda: self._scale(3)),
            (3, self._kill),
            (3, lambda: self._scale(2)),
        ]
        if self._acts >= len(acts) or self.phase != "Running":
            return
        size, act = acts[self._acts]
        ready = int(self.status.get("readyReplicas") or 0)
        there = [p for p in self.pods if "deletionTimestamp" not in p["metadata"]]
        alive = [p for p in there if p["status"].get("phase") == "Running"]
        if ready == size and len(alive) == size and int(self.status.get("step") or 0) > self._step + 20:
            act()
            self._acts += 1
            self._step = int(self.status.get("step") or 0)

    def _scale(self, size: int) -> None:
        self._say(f"kubectl scale atj {JOB} --replicas={size}")
        self.kubectl("scale", "atj", JOB, "-n", NAMESPACE, f"--replicas={size}")

    def _kill(self) -> None:
        names = sorted(p["metadata"]["name"] for p in self.pods)
        self.killed = names[0]
        self._say(f"killing {self.killed}")
        self.kubectl("delete", "pod", self.killed, "-n", NAMESPACE, "--grace-period=0", "--force", "--wait=false")

    def _say(self, what: str) -> None:
        self.said.append(f"{datetime.now():%H:%M:%S} {what}")

    def picture(self) -> Group:
        """The table that a user watches."""
        s = self.status
        table = Table("phase", "workers", "epoch", "step", "loss", "validation", "ETA")
        loss = s.get("loss")
        seen = [s.get(name) for name in ("workers", "epoch", "step")]
        cells = (self.phase, *seen, loss and f"{loss:.4f}", s.get("metric"), s.get("eta"))
        table.add_row(*("" if c is None else str(c) for c in cells))
        pods = [
            f"  {p['metadata']['name']} on {p['spec'].get('nodeName', '-')}: {p['status'].get('phase')}"
            for p in self.pods
        ]
        done = [f"  [bold]{line}[/bold]" for line in self.said]
        return Group(table, *pods, "events:", *(f"  {e}" for e in self.events), "what the demo did:", *done)


def _tell(console: Console, story: Story, prometheus: str | None) -> None:
    s = story.status
    model = s.get("model") or {}
    colour = "green" if story.phase == "Succeeded" else "red"
    console.print(f"\n[{colour}]{story.phase}[/{colour}] at step {s.get('step')}: {s.get('metric')}")
    if model:
        console.print(f"best weights: {model.get('path')} in the volume", soft_wrap=True)
    if prometheus is not None:
        console.print(f"stalls of the survivors: {_stalls(prometheus)}")
    restarts = sum(c.get("restartCount", 0) for p in story.pods for c in p["status"].get("containerStatuses", []))
    console.print(f"container restarts: {restarts}; failures of the workers' own: {s.get('restarts') or 0}")
    for condition in s.get("conditions", []):
        if condition["status"] == "True":
            console.print(f"  {condition['type']}: {condition['message']}")
    console.print("\nwhere to look next:")
    kubeconfig = story.kubectl.kubeconfig
    if kubeconfig is not None:
        console.print(f"  export KUBECONFIG={kubeconfig}", highlight=False)
    console.print(f"  kubectl get atj -n {NAMESPACE}", highlight=False)
    console.print(f"  kubectl describe atj -n {NAMESPACE} {JOB}", highlight=False)
    if prometheus is not None:
        console.print(f"  Prometheus: {prometheus} (try adaptrain_job_step)", highlight=False)
    console.print("  Grafana: import charts/adaptrain/dashboards/*.json, or let its sidecar find the ConfigMaps")
    console.print("  make down removes everything that was made")


def _stalls(prometheus: str) -> str:
    """Count, mean and longest bucket of the stalls that Prometheus saw."""

    def ask(query: str) -> float | None:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
            found = json.load(answer)["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    selector = f'{{job_name="{JOB}",job_namespace="{NAMESPACE}"}}'
    count = ask(f"sum(max_over_time(adaptrain_job_stall_seconds_count{selector}[30m]))")
    total = ask(f"sum(max_over_time(adaptrain_job_stall_seconds_sum{selector}[30m]))")
    if not count or total is None:
        return "none were measured"
    return f"{count:.0f}, {1e3 * total / count:.0f} ms on average"
