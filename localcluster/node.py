"""A node: a first process in namespaces of its own, and the daemons that join it there.

All that the node runs is in the process namespace of that first process, so killing it is a power cut: the kernel kills
the rest at once. Its mounts and its network go with it; what a disk would keep stays in the node's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from datetime import datetime
from pathlib import Path

import yaml

from localcluster import cgroups, network, pki
from localcluster.command import run, write
from localcluster.config import (
    DNS_SERVICE_IP,
    GPUS_PER_NODE,
    HOST_IP,
    PAUSE_IMAGE,
    REGISTRY,
    REGISTRY_PORT,
    Paths,
)
from localcluster.controlplane import proxy_config
from localcluster.errors import ClusterError
from localcluster.kube import JSON_PATCH, Kube, KubeError
from localcluster.process import Daemon, Processes, as_argv, enter, wait_until

DAEMONS = ("init", "containerd", "kubelet", "kube-proxy")
_SOCKET = "/run/containerd/containerd.sock"

# The folders of the node that programs insist on under fixed names; on the host they stay as they are.
_MOUNTS = """
set -e
echo {name} >/proc/sys/kernel/hostname
mount -t tmpfs tmpfs /run
mount --bind {folder}/log /var/log
mount --bind {folder}/cni-cache /var/lib/cni
mount --bind {folder}/kubelet /var/lib/kubelet
exec {pause}
"""
MOUNT_POINTS = (Path("/var/lib/cni"), Path("/var/lib/kubelet"))
"""What has to exist on the host for that, and may not."""


class Node:
    """One real node, named node1, node2, …"""

    def __init__(self, name: str, paths: Paths, processes: Processes, programs: dict[str, Path]) -> None:
        self.name = name
        self.index = int(re.fullmatch(r"node(\d+)", name)[1])  # type: ignore[index]
        self._folder = paths.nodes / name
        self._paths = paths
        self._processes = processes
        self._programs = programs

    @property
    def ip(self) -> str:
        return network.node_ip(self.index)

    @property
    def running(self) -> bool:
        return self._processes.pid(self.daemon("init")) is not None

    @property
    def state(self) -> str:
        if not self.running:
            return "stopped"
        return "running" if network.is_connected(self.index) else "cut"

    def daemon(self, role: str) -> str:
        """The name under which one of the node's daemons is recorded."""
        return f"{self.name}-{role}"

    def ensure(self, archive: Path) -> None:
        """Starts what does not run; called again, it repairs. ``archive`` holds the image of the pod sandbox."""
        self._write_files()
        if not self.running:
            self._boot()
        network.ensure_node(self.index, self._pid())
        self._start("containerd", ("containerd", "--config", str(self._folder / "containerd.toml")))
        self._processes.wait(self.daemon("containerd"), self._containerd_answers, timeout=30)
        self._import(archive)
        kubelet = {
            "config": self._folder / "kubelet.yaml",
            "kubeconfig": self._folder / "kubelet.conf",
            "hostname-override": self.name,
            "node-ip": self.ip,
        }
        self._start("kubelet", as_argv(self._programs["kubelet"], kubelet))
        proxy = {"config": self._folder / "kube-proxy.yaml", "hostname-override": self.name}
        self._start("kube-proxy", as_argv(self._programs["kube-proxy"], proxy))

    def wait_ready(self, kube: Kube, *, timeout: float = 90) -> None:
        """Waits for the kubelet to report itself ready, and gives the node its pretended GPUs."""
        self._processes.wait(self.daemon("kubelet"), lambda: self._is_ready(kube), timeout=timeout)

    def _is_ready(self, kube: Kube) -> bool:
        path = f"/api/v1/nodes/{self.name}"
        try:
            lease = kube.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}")
            # Before this kubelet's first word, the status is what an earlier one said.
            renewed = datetime.fromisoformat(lease["spec"]["renewTime"])
            if renewed.timestamp() < self._processes.since(self.daemon("kubelet")):
                return False
            status = kube.get(path)["status"]
            if status.get("capacity", {}).get("nvidia.com/gpu") != str(GPUS_PER_NODE):
                gpus = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS_PER_NODE)}
                kube.patch(f"{path}/status", [gpus], kind=JSON_PATCH)
                return False
        except KubeError:
            return False
        conditions = {item["type"]: item["status"] for item in status.get("conditions", [])}
        return conditions.get("Ready") == "True" and "nvidia.com/gpu" in status.get("allocatable", {})

    def power_off(self) -> None:
        """Cuts the power: the link goes first, so that no peer hears a farewell from the dying sockets."""
        network.cut(self.index)
        pid = self._processes.pid(self.daemon("init"))
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cgroups.kill(self.name)
        wait_until(f"the end of {self.name}", lambda: not self.running, timeout=20)
        for role in DAEMONS:
            self._processes.forget(self.daemon(role))
        cgroups.remove(self.name)
        network.disconnect(self.index)

    def cut(self) -> None:
        network.cut(self.index)

    def heal(self) -> None:
        network.ensure_node(self.index, self._pid())

    def enter(self, *argv: str | Path) -> tuple[str, ...]:
        """The command that runs ``argv`` on the node."""
        return (*enter(self._pid(), "mount", "uts", "net", "pid"), *(str(word) for word in argv))

    def _pid(self) -> int:
        pid = self._processes.pid(self.daemon("init"))
        if pid is None:
            raise ClusterError(f"{self.name} is not running: `python -m localcluster node start {self.name}`")
        return pid

    def _boot(self) -> None:
        self.power_off()  # what an unclean end may have left
        cgroups.create(f"{self.name}/system")
        script = _MOUNTS.format(name=self.name, folder=self._folder, pause=self._programs["pause"])
        argv = ("sh", "-c", script)
        namespaces = ("--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._processes.start(
            Daemon(
                self.daemon("init"),
                argv,
                f"{self.name}/system",
                enter=("unshare", *namespaces, "--"),
            )
        )
        # Its last act as a shell is to become `pause`.
        pause = self._programs["pause"].resolve()
        running = Path(f"/proc/{self._pid()}/exe")
        self._processes.wait(self.daemon("init"), lambda: running.resolve() == pause, timeout=30)

    def _start(self, role: str, argv: tuple[str, ...]) -> bool:
        prefix = enter(self._pid(), "mount", "uts", "net", "pid")
        return self._processes.start(Daemon(self.daemon(role), argv, f"{self.name}/system", enter=prefix))

    def _containerd_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"/proc/{self._pid()}/root{_SOCKET}")
            except OSError:
                return False
        return True

    def _import(self, archive: Path) -> None:
        images = self.enter("ctr", "--namespace", "k8s.io", "images")
        if not run(*images, "list", "--quiet", f"name=={PAUSE_IMAGE}").strip():
            run(*images, "import", archive)

    def _write_files(self) -> None:
        folder = self._folder
        for name in ("containerd", "kubelet", "cni", "cni-cache", "log/pods", f"certs.d/{REGISTRY}"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for point in MOUNT_POINTS:
            point.mkdir(parents=True, exist_ok=True)
        pki.ensure_kubelet(self._paths, self._programs["kubeadm"], self.name, folder)
        proxy_config(self._paths, folder / "kube-proxy.yaml")
        write(folder / "resolv.conf", f"nameserver {HOST_IP}\n")
        write(folder / "kubelet.yaml", yaml.safe_dump(self._kubelet()))
        write(folder / "containerd.toml", self._containerd())
        write(folder / "cni" / "10-pods.conflist", json.dumps(self._cni()))
        registry = f"http://{HOST_IP}:{REGISTRY_PORT}"
        hosts = f'server = "{registry}"\n[host."{registry}"]\n  capabilities = ["pull", "resolve"]\n'
        write(folder / "certs.d" / REGISTRY / "hosts.toml", hosts)

    def _kubelet(self) -> dict[str, object]:
        never = ("nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._paths.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroups.ROOT}/{self.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "resolvConf": str(self._folder / "resolv.conf"),
            "podLogsDir": "/var/log/pods",
            # The nodes share one disk: what another program fills must not evict pods or images here.
            "evictionHard": {"memory.available": "100Mi", **dict.fromkeys(never, "0%")},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 20,
            "serializeImagePulls": False,
            "oomScoreAdj": 0,
        }

    def _containerd(self) -> str:
        return f"""version = 2
root = "{self._folder}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without the capability to lower it, a container would not start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{self._folder}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self._folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # Images are kept unpacked only; the registry has them packed.
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""

    def _cni(self) -> dict[str, object]:
        """Pods are on a bridge of the node, with addresses that every other node routes to."""
        ipam = {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": network.pod_subnet(self.index)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
