"""Every query of every dashboard finds data in a real Prometheus.

It scrapes a real local run, whose workers join and are killed, and a real operator, whose job is resized on simulated
nodes.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from adaptrain.local.processes import LocalJob
from adaptrain_operator import metrics as operator_metrics

from tests.e2e.local_jobs import job, running, step_of, wait_for
from tests.e2e.local_searches import running as running_search
from tests.e2e.local_searches import search
from tests.e2e.test_chart import kubeconfig, kubectl, run
from tests.support.manifests import small_training

__all__ = ["kubeconfig", "kubectl"]

Object = dict[str, Any]

FOLDER = Path(__file__).resolve().parents[2] / "charts/adaptrain/dashboards"
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
WINDOW = 20
"""Seconds for ``$__rate_interval``: many scrapes."""
WORKERS = 3

OPERATOR_JOB: Object = {
    "apiVersion": "adaptrain.io/v1alpha1",
    "kind": "AdaptiveTrainingJob",
    "metadata": {"name": "seen"},
    "spec": {
        "image": "registry.invalid/trainer:none",
        "workers": {
            "min": 1,
            "max": 3,
            "replicas": 3,
            "nodeSelector": {"adaptrain.io/simulated": "true"},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        },
        **small_training(),
    },
}
FAILING_JOB: Object = {
    **OPERATOR_JOB,
    "metadata": {"name": "late"},
    "spec": {**OPERATOR_JOB["spec"], "preRunningDeadlineSeconds": 1},
}
"""No worker of it can train, so it fails of its deadline."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class ScrapedJob(LocalJob):
    """A local job whose workers have metrics ports that are known beforehand."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.metrics_ports = [free_port() for _ in range(WORKERS)]

    def start_worker(self, **environment: str) -> int:
        port = self.metrics_ports[len(self.workers)]
        return super().start_worker(ADAPTRAIN_METRICS_PORT=str(port), **environment)


class Prometheus:
    """One that scrapes these targets every second: address → labels."""

    def __init__(self, folder: Path, targets: dict[str, dict[str, str]]) -> None:
        from localcluster.api import Cluster

        self.port = free_port()
        scraped = [{"targets": [address], "labels": labels} for address, labels in targets.items()]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "adaptrain", "static_configs": scraped}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    Cluster().tool("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stderr=log,
            )

    def ask(self, path: str, **query: Any) -> list[Object]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            pytest.fail(f"{query['query']}: {error.read().decode()}")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScrapedJob]:
    volume = {"persistentVolumeClaim": {"claimName": "none"}}
    spec = job("seen", checkpoint={"volume": volume, "everySeconds": 1})
    with ScrapedJob(spec, checkpoints=tmp_path_factory.mktemp("checkpoints")) as local:
        local.start_coordinator()
        yield local


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalJob]:
    """A search that goes on and on."""
    endless = search("sought", budget={"trials": 1000000}, choices=10, algorithm={"name": "random"})
    with running_search(endless, tmp_path_factory.mktemp("study")) as (local, _):
        local.start_coordinator()
        yield local


@pytest.fixture(scope="module")
def operator(kubeconfig: str, kubectl: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Object]:
    """A running operator: where its metrics are, and a namespace that it serves."""
    namespace, port = f"dashboards-{uuid.uuid4().hex[:6]}", free_port()
    if os.environ.get("CLUSTER", "local") == "local":
        from localcluster.api import Cluster

        if not run(*kubectl, "get", "nodes", "-l", "adaptrain.io/simulated", "-o", "name").strip():
            Cluster().node_fake(4)
    root = FOLDER.parents[2]
    run(*kubectl, "apply", "--server-side", "--force-conflicts", "-f", root / "crds")
    run(*kubectl, "wait", "--for=condition=Established", "crd/adaptivetrainingjobs.adaptrain.io", "--timeout=60s")
    run(*kubectl, "create", "namespace", namespace)
    settings = {
        "NAMESPACES": namespace,
        "LEASE_NAMESPACE": namespace,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "RESYNC_SECONDS": "2",
    }
    env = os.environ | {f"ADAPTRAIN_OPERATOR_{name}": value for name, value in settings.items()}
    if kubeconfig:
        env["KUBECONFIG"] = kubeconfig
    log = tmp_path_factory.mktemp("operator") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "adaptrain_operator.main"], env=env, stderr=file)
    yield {"port": port, "namespace": namespace, "log": log}
    # First the jobs, while there is somebody who would notice.
    subprocess.run([*kubectl, "delete", "namespace", namespace, "--wait=false"], capture_output=True, timeout=60)
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def prometheus(
    training: ScrapedJob,
    searching: LocalJob,
    operator: Object,
    kubectl: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """One that has seen workers join and die, and a job made and resized."""
    coordinator = training.http_address.removeprefix("http://")
    targets = {
        coordinator: {"namespace": "default", "pod": "seen-coordinator-1"},
        f"127.0.0.1:{operator['port']}": {"namespace": operator["namespace"], "pod": "operator-1"},
    }
    targets[searching.http_address.removeprefix("http://")] = {"namespace": "default", "pod": "sought-coordinator-1"}
    for number, port in enumerate(training.metrics_ports):
        targets[f"127.0.0.1:{port}"] = {"namespace": "default", "pod": f"seen-worker-{number}"}
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    try:
        wait_for("Prometheus", server.ready)
        # A counter's first increase is seen only if its series was there before: here, before anything happens.
        count = 'adaptrain_operator_leader == 1 or adaptrain_job_workers{job_name="seen"} == 0'
        wait_for("first scrapes", lambda: len(server.ask("query", query=count)) == 2)
        words = ["--namespace", operator["namespace"]]
        run(*kubectl, "apply", *words, "-f", "-", give=json.dumps(OPERATOR_JOB))
        run(*kubectl, "apply", *words, "-f", "-", give=json.dumps(FAILING_JOB))
        searching.start_worker()
        for _ in range(2):
            training.start_worker()
        running(training, 2)
        began = step_of(training)
        wait_for("200 steps", lambda: step_of(training) > began + 200, training)
        training.start_worker()
        running(training, 3)
        time.sleep(2)
        training.signal(0, signal.SIGKILL)
        running(training, 2)
        pods = ["get", "pods", *words, "-l", "adaptrain.io/role=worker", "-o", "name"]
        wait_for("3 pods", lambda: len(run(*kubectl, *pods).split()) == 3)
        run(*kubectl, "scale", "adaptivetrainingjob/seen", "--replicas=1", *words)
        wait_for("1 pod", lambda: len(run(*kubectl, *pods).split()) == 1)
        # Memory is measured every five seconds, checkpoints are made beside the training.
        for needed in (
            "adaptrain_job_checkpoint_step > 0",
            "adaptrain_job_validation",
            "adaptrain_worker_memory_bytes",
            "adaptrain_search_best",
            "adaptrain_operator_job_failed_timestamp_seconds",
        ):
            wait_for(needed, lambda query=needed: server.ask("query", query=query), training)
        time.sleep(3)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def panels() -> Iterator[Any]:
    process = any("process_cpu" in family.name for family in operator_metrics.REGISTRY.collect())
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                marks = []
                if "process_" in target["expr"] and not process:
                    marks = [pytest.mark.xfail(reason="the operator exports no process metrics", strict=True)]
                label = f"{name}-{panel['id']}-{panel['title']}-{target['refId']}"
                yield pytest.param(name, panel, target, id=label, marks=marks)


def find(server: Prometheus, expr: str, instant: bool) -> list[float]:
    """All values that a query yields, those that are no number left out."""
    now = time.time()
    if instant:
        found = [series["value"] for series in server.ask("query", query=expr, time=now)]
    else:
        series = server.ask("query_range", query=expr, start=now - 90, end=now, step=2)
        found = [point for one in series for point in one["values"]]
    return [value for _, text in found if math.isfinite(value := float(text))]


@pytest.mark.parametrize(("board", "panel", "target"), list(panels()))
def test_query_finds_data(prometheus: Prometheus, operator: Object, board: str, panel: Object, target: Object) -> None:
    variables = {
        "__rate_interval": f"{WINDOW}s",
        "__range": "300s",
        "namespace": operator["namespace"] if board == "operator" else "default",
        "job": "seen",
        "search": "sought",
    }
    expr = target["expr"]
    for name, value in variables.items():
        expr = expr.replace(f"${name}", value)
    assert find(prometheus, expr, target["instant"]), f"{panel['title']}: no data for {expr}"


@pytest.mark.parametrize("board", BOARDS)
def test_variables_find_values(prometheus: Prometheus, operator: Object, board: str) -> None:
    """The drop-down lists offer what is there: ``label_values(series, label)``."""
    expected: dict[str, Callable[[], str]] = {
        "namespace": lambda: operator["namespace"] if board == "operator" else "default",
        "job": lambda: "seen",
        "search": lambda: "sought",
    }
    for variable in BOARDS[board]["templating"]["list"]:
        if "definition" in variable:
            series, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            series = series.replace("$namespace", expected["namespace"]())
            found = {one["metric"].get(label) for one in prometheus.ask("query", query=series)}
            assert expected[variable["name"]]() in found
