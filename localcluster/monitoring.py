"""A Prometheus that scrapes every pod of the cluster which names a port ``metrics`` or ``http``.

Debian's Prometheus has no discovery of Kubernetes of its own. ``python -m localcluster.monitoring STATE`` runs beside
it and writes the targets to a file that it watches.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

from localcluster.config import Paths
from localcluster.controlplane import CGROUP
from localcluster.kube import Kube, KubeError, Object
from localcluster.process import Daemon, Processes

NAME, DISCOVERY = "prometheus", "prometheus-discovery"
URL = "http://127.0.0.1:9090"
_PODS = "/api/v1/pods?resourceVersion=0&labelSelector=app.kubernetes.io%2Fpart-of%3Dadaptrain"
_PORTS = ("metrics", "http")
_POLL = 1.0


def ensure(program: Path, paths: Paths, processes: Processes) -> str:
    """Starts Prometheus. Returns its URL."""
    home = paths.state / NAME
    home.mkdir(exist_ok=True)
    config = home / "prometheus.yml"
    files = [str(home / "targets.json")]
    scrape = {"job_name": "adaptrain", "file_sd_configs": [{"files": files, "refresh_interval": "2s"}]}
    whole = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [scrape]}
    config.write_text(json.dumps(whole))  # JSON is YAML
    argv = (sys.executable, "-m", "localcluster.monitoring", str(paths.state))
    folder = str(Path(__file__).resolve().parent.parent)
    processes.start(Daemon(DISCOVERY, argv, CGROUP, env={"PYTHONPATH": folder}))
    flags = (f"--config.file={config}", f"--storage.tsdb.path={home / 'data'}")
    address = URL.removeprefix("http://")
    processes.start(Daemon(NAME, (str(program), *flags, f"--web.listen-address={address}"), CGROUP))
    processes.wait(NAME, _ready, timeout=60)
    return URL


def targets(pods: list[Object]) -> list[Object]:
    """Prometheus' static configuration for the running pods, which Kubernetes' own discovery would make."""
    found = []
    for pod in pods:
        address = pod["status"].get("podIP")
        if not address or pod["status"].get("phase") != "Running":
            continue
        labels = {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                if port.get("name") in _PORTS:
                    where = f"{address}:{port['containerPort']}"
                    found.append({"targets": [where], "labels": labels | {"container": container["name"]}})
    return found


def main() -> None:
    paths = Paths(Path(sys.argv[1]))
    kube = Kube(paths)
    file = paths.state / NAME / "targets.json"
    while True:
        try:
            new = file.with_suffix(".new")
            new.write_text(json.dumps(targets(kube.items(_PODS))))
            os.replace(new, file)
        except (KubeError, OSError) as error:  # the API server may be restarting
            print(error, flush=True)
        time.sleep(_POLL)


def _ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
