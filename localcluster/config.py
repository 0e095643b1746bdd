"""Where things live and which addresses they have."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "adbr0"
HOST_IP = "10.210.0.1"
NODE_NETWORK = "10.210.0.0/24"
POD_NETWORK = "10.211.0.0/16"
SERVICE_NETWORK = "10.220.0.0/16"
DNS_SERVICE_IP = "10.220.0.10"
API_PORT = 6443
REGISTRY_PORT = 5000
REGISTRY = f"registry.local:{REGISTRY_PORT}"
"""The name under which pods ask for images; only the nodes' containerd knows it."""
PAUSE_IMAGE = f"{REGISTRY}/pause:1"
GPUS_PER_NODE = 4
MAX_NODES = 50
WORKER_UID = 10001
"""The user that owns new volumes: the one that our images run as."""

CHECKOUT = Path(__file__).resolve().parent.parent
GO_MODULES = Path(__file__).resolve().parent / "go"


def cache_dir() -> Path:
    """Built programs and images: slow to make, safe to keep, shared by all checkouts."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptrain"
    return Path(os.environ.get("ADAPTRAIN_CACHE") or default).absolute()


def state_dir() -> Path:
    """All that the running cluster knows; ``down`` removes it."""
    return Path(os.environ.get("ADAPTRAIN_STATE") or "/var/lib/adaptrain-localcluster").absolute()


@dataclass(frozen=True)
class Paths:
    """The files of the one cluster of this machine."""

    state: Path

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def kubeconfigs(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def kubeconfig(self) -> Path:
        return self.kubeconfigs / "admin.conf"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def processes(self) -> Path:
        return self.state / "processes"

    @property
    def nodes(self) -> Path:
        return self.state / "nodes"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"
