"""Certificates and kubeconfigs, made by kubeadm."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from localcluster.command import run, write
from localcluster.config import API_PORT, HOST_IP, POD_NETWORK, SERVICE_NETWORK, Paths

_KUBECONFIGS = ("admin", "super-admin", "controller-manager", "scheduler")


def ensure(paths: Paths, kubeadm: Path) -> None:
    """Makes what is missing. kubeadm keeps what is there, so that an interrupted start can go on."""
    config = _config(paths)
    if not all((paths.kubeconfigs / f"{name}.conf").exists() for name in _KUBECONFIGS):
        run(kubeadm, "init", "phase", "certs", "all", "--config", config)
        for name in _KUBECONFIGS:
            folder = paths.kubeconfigs
            run(kubeadm, "init", "phase", "kubeconfig", name, "--config", config, "--kubeconfig-dir", folder)
    for name in ("admin", "super-admin"):
        if not (paths.pki / f"{name}.key").exists():
            _extract(paths, name)


def ensure_kubelet(paths: Paths, kubeadm: Path, node: str, folder: Path) -> None:
    """The kubeconfig of a node's kubelet, which may touch this node and its pods only."""
    if (folder / "kubelet.conf").exists():
        return
    config = _config(paths, node)
    run(kubeadm, "init", "phase", "kubeconfig", "kubelet", "--config", config, "--kubeconfig-dir", folder)


def _config(paths: Paths, node: str = "control-plane") -> Path:
    initial = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": HOST_IP, "bindPort": API_PORT},
        "nodeRegistration": {"name": node},
    }
    cluster = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        # A known version keeps kubeadm from asking the Internet for the latest.
        "kubernetesVersion": "v1.35.4",
        "certificatesDir": str(paths.pki),
        "controlPlaneEndpoint": f"{HOST_IP}:{API_PORT}",
        "networking": {"serviceSubnet": SERVICE_NETWORK, "podSubnet": POD_NETWORK},
        # External, so that kubeadm makes no certificates for it: ours listens on the loopback only.
        "etcd": {"external": {"endpoints": ["http://127.0.0.1:2379"]}},
    }
    paths.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = paths.pki / f"kubeadm-{node}.yaml"
    write(file, yaml.safe_dump_all([initial, cluster]))
    return file


def _extract(paths: Paths, name: str) -> None:
    """Writes an administrator's certificate and key as files, the form that TLS libraries take."""
    user = yaml.safe_load((paths.kubeconfigs / f"{name}.conf").read_text())["users"][0]["user"]
    for suffix, field in (("crt", "client-certificate-data"), ("key", "client-key-data")):
        file = paths.pki / f"{name}.{suffix}"
        file.touch(mode=0o600)
        file.write_bytes(base64.b64decode(user[field]))
