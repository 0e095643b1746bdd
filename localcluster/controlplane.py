"""etcd, the API server and the other daemons of the host."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml

from localcluster import network
from localcluster.command import write
from localcluster.config import (
    API_PORT,
    CHECKOUT,
    DNS_SERVICE_IP,
    HOST_IP,
    POD_NETWORK,
    REGISTRY_PORT,
    SERVICE_NETWORK,
    Paths,
)
from localcluster.errors import ClusterError
from localcluster.kube import Kube, KubeError, Object
from localcluster.process import Daemon, Processes, as_argv
from localcluster.storage import PROVISIONER

CGROUP = "control-plane"
_ETCD = "http://127.0.0.1:2379"
_KUBE_PROXY_HEALTH = "http://127.0.0.1:10256/livez"
_STORAGE_CLASS = "shared"


class ControlPlane:
    """Starts whatever does not run; called again, it repairs."""

    def __init__(self, paths: Paths, processes: Processes, programs: dict[str, Path]) -> None:
        self._paths = paths
        self._processes = processes
        self._programs = programs

    def ensure(self) -> Kube:
        """Brings up all daemons of the host and the objects that they need; returns a client."""
        self._start(self._etcd(), lambda: _answers(f"{_ETCD}/health"), ports=[("127.0.0.1", 2379)])
        kube = Kube(self._paths)
        # The administrator's rights come from a role binding, which does not exist yet.
        root = Kube(self._paths, identity="super-admin")
        self._start(self._apiserver(), root.ready, ports=[(HOST_IP, API_PORT)])
        self._objects(root)
        self._start(self._controller_manager(), lambda: True, ports=[("127.0.0.1", 10257)])
        self._start(self._scheduler(), lambda: True, ports=[("127.0.0.1", 10259)])
        registry = f"http://{HOST_IP}:{REGISTRY_PORT}/v2/"
        self._start(self._registry(), lambda: _answers(registry), ports=[(HOST_IP, REGISTRY_PORT)])
        self._start(self._dns(), lambda: _answers(f"http://{HOST_IP}:8181/ready"), ports=[(HOST_IP, 53)])
        self._start(self._storage(), lambda: True, ports=[])
        return kube

    def ensure_proxy(self) -> None:
        """Lets the host reach Services, as the API server must for webhooks and aggregated APIs.

        kube-proxy wants to be some node, or it waits half a minute for one; here it is the first.
        """
        if self._processes.record("kube-proxy") is None and network.has_service_tables():
            raise ClusterError(
                "the nftables rules of another Kubernetes are on this machine: take it out of that cluster, then run "
                "`nft delete table ip kube-proxy`"
            )
        config = proxy_config(self._paths, self._paths.state / "kube-proxy.yaml")
        argv = as_argv(self._programs["kube-proxy"], {"config": config, "hostname-override": "node1"})
        proxy = Daemon("kube-proxy", argv, CGROUP)
        self._start(proxy, lambda: _answers(_KUBE_PROXY_HEALTH), ports=[("127.0.0.1", 10256)])

    def _start(self, daemon: Daemon, ready: Callable[[], bool], *, ports: list[tuple[str, int]]) -> None:
        if self._processes.pid(daemon.name) is None:
            for host, port in ports:
                network.check_port(host, port, daemon.name)
        self._processes.start(daemon)
        self._processes.wait(daemon.name, ready, timeout=60)

    def _etcd(self) -> Daemon:
        peer = "http://127.0.0.1:2380"
        flags = {
            "data-dir": self._paths.state / "etcd",
            # A cluster that does not outlive its machine need not wait for the disk.
            "unsafe-no-fsync": True,
            "listen-client-urls": _ETCD,
            "advertise-client-urls": _ETCD,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "log-level": "warn",
        }
        return Daemon("etcd", as_argv(self._programs["etcd"], flags), CGROUP)

    def _apiserver(self) -> Daemon:
        pki = self._paths.pki
        flags = {
            "etcd-servers": _ETCD,
            "bind-address": HOST_IP,
            "advertise-address": HOST_IP,
            "secure-port": API_PORT,
            "service-cluster-ip-range": SERVICE_NETWORK,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": True,
            "client-ca-file": pki / "ca.crt",
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "service-account-key-file": pki / "sa.pub",
            "service-account-signing-key-file": pki / "sa.key",
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "kubelet-client-certificate": pki / "apiserver-kubelet-client.crt",
            "kubelet-client-key": pki / "apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP",
            "proxy-client-cert-file": pki / "front-proxy-client.crt",
            "proxy-client-key-file": pki / "front-proxy-client.key",
            "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
        }
        return Daemon("kube-apiserver", as_argv(self._programs["kube-apiserver"], flags), CGROUP)

    def _client_flags(self, name: str) -> dict[str, object]:
        kubeconfig = self._paths.kubeconfigs / f"{name}.conf"
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": "127.0.0.1",
            "leader-elect": False,
            # The defaults would be the bottleneck of a cluster whose pods start at once.
            "kube-api-qps": 500,
            "kube-api-burst": 1000,
        }

    def _controller_manager(self) -> Daemon:
        pki = self._paths.pki
        flags = {
            **self._client_flags("controller-manager"),
            "service-account-private-key-file": pki / "sa.key",
            "root-ca-file": pki / "ca.crt",
            "cluster-signing-cert-file": pki / "ca.crt",
            "cluster-signing-key-file": pki / "ca.key",
            "use-service-account-credentials": True,
            "cluster-cidr": POD_NETWORK,
            # Each node's pods have addresses of our choice, see network.pod_subnet.
            "allocate-node-cidrs": False,
            "service-cluster-ip-range": SERVICE_NETWORK,
            "node-monitor-grace-period": "20s",
        }
        return Daemon("kube-controller-manager", as_argv(self._programs["kube-controller-manager"], flags), CGROUP)

    def _scheduler(self) -> Daemon:
        argv = as_argv(self._programs["kube-scheduler"], self._client_flags("scheduler"))
        return Daemon("kube-scheduler", argv, CGROUP)

    def _registry(self) -> Daemon:
        config = self._paths.state / "registry.yaml"
        data = self._paths.state / "registry"
        document = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
            "http": {"addr": f"{HOST_IP}:{REGISTRY_PORT}"},
        }
        write(config, yaml.safe_dump(document))
        return Daemon("registry", ("docker-registry", "serve", str(config)), CGROUP)

    def _dns(self) -> Daemon:
        corefile = self._paths.state / "Corefile"
        write(
            corefile,
            f""".:53 {{
  bind {HOST_IP}
  errors
  ready {HOST_IP}:8181
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {self._paths.kubeconfig}
    pods insecure
    ttl 1
  }}
  cache 1
}}
""",
        )
        return Daemon("coredns", as_argv(self._programs["coredns"], {}, "-conf", str(corefile)), CGROUP)

    def _storage(self) -> Daemon:
        argv = (sys.executable, "-m", "localcluster.storage", str(self._paths.state))
        env = {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
        return Daemon("storage", argv, CGROUP, env=env)

    def _objects(self, kube: Kube) -> None:
        """What kubeadm and add-ons would have made in a cluster of theirs."""
        admins = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeadm:cluster-admins"}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kubeadm:cluster-admins"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [admins],
        }
        kube.apply("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
        storage_class = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": _STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        }
        kube.apply("/apis/storage.k8s.io/v1/storageclasses", storage_class)
        # DNS runs on the host, so its Service has no pods to select: its one endpoint is written by hand.
        ports = [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ]
        service: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_SERVICE_IP, "ports": ports},
        }
        endpoints: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-host",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [HOST_IP], "conditions": {"ready": True}}],
            "ports": ports,
        }
        self._in_kube_system(kube, "/api/v1/namespaces/kube-system/services", service)
        slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
        self._in_kube_system(kube, slices, endpoints)

    def _in_kube_system(self, kube: Kube, path: str, body: Object) -> None:
        """A fresh API server makes its own namespaces a moment after it is ready."""

        def created() -> bool:
            try:
                kube.apply(path, body)
            except KubeError as error:
                if error.code in (0, 404):
                    return False
                raise
            return True

        self._processes.wait("kube-apiserver", created, timeout=30)


def proxy_config(paths: Paths, file: Path) -> Path:
    """What host and nodes tell their kube-proxy."""
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": str(paths.kubeconfig), "qps": 100, "burst": 200},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Leaves the kernel's limits alone: some are read-only in a namespace, and none matters here.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpCloseWaitTimeout": "0s",
            "tcpEstablishedTimeout": "0s",
        },
        # Asking for a lower one takes a capability that containers lack.
        "oomScoreAdj": 0,
        "nftables": {"minSyncPeriod": "100ms"},
    }
    write(file, yaml.safe_dump(document))
    return file


def _answers(url: str) -> bool:
    # No proxy from the environment: these are all addresses of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def names() -> tuple[str, ...]:
    """The daemons of the host, in their order of start."""
    return (
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "registry",
        "coredns",
        "storage",
        "kube-proxy",
    )
