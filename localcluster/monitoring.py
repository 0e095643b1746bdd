"""A Prometheus that scrapes every pod of the cluster which names a port ``metrics`` or ``http``."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from localcluster.config import Paths
from localcluster.controlplane import CGROUP
from localcluster.process import Daemon, Processes

NAME = "prometheus"
PORT = 9090
URL = f"http://127.0.0.1:{PORT}"
SELECTOR = "app.kubernetes.io/part-of=adaptrain"


def ensure(program: Path, paths: Paths, processes: Processes) -> str:
    """Starts Prometheus. Returns its URL."""
    home = paths.state / NAME
    home.mkdir(exist_ok=True)
    config = home / "prometheus.yml"
    config.write_text(json.dumps(_config(paths)))  # JSON is YAML
    argv = (str(program), f"--config.file={config}", f"--storage.tsdb.path={home / 'data'}")
    processes.start(Daemon(NAME, (*argv, f"--web.listen-address=127.0.0.1:{PORT}"), CGROUP))
    processes.wait(NAME, _ready, timeout=60)
    return URL


def _ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _config(paths: Paths) -> dict[str, object]:
    discovery = {
        "role": "pod",
        "kubeconfig_file": str(paths.kubeconfig),
        "selectors": [{"role": "pod", "label": SELECTOR}],
    }

    def keep(source: str, pattern: str) -> dict[str, object]:
        return {"source_labels": [source], "regex": pattern, "action": "keep"}

    def name(source: str, label: str) -> dict[str, object]:
        return {"source_labels": [source], "target_label": label}

    relabel = [
        keep("__meta_kubernetes_pod_container_port_name", "metrics|http"),
        keep("__meta_kubernetes_pod_phase", "Running"),
        name("__meta_kubernetes_namespace", "namespace"),
        name("__meta_kubernetes_pod_name", "pod"),
    ]
    scrape = {"job_name": "adaptrain", "kubernetes_sd_configs": [discovery], "relabel_configs": relabel}
    return {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [scrape]}
