"""The bridge that joins host and nodes, and the links and routes of the nodes."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path
from typing import Any

from localcluster.command import run
from localcluster.config import BRIDGE, HOST_IP, NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK, Paths
from localcluster.errors import ClusterError
from localcluster.process import enter

BRIDGE_ADDRESS = "02:ad:00:00:00:01"


def node_ip(index: int) -> str:
    return str(ipaddress.ip_network(NODE_NETWORK)[10 + index])


SIMULATED_PODS = str(list(ipaddress.ip_network(POD_NETWORK).subnets())[1])
"""The upper half of the pods' addresses: the real nodes use the lower."""


def pod_subnet(index: int) -> str:
    return str(list(ipaddress.ip_network(POD_NETWORK).subnets(new_prefix=24))[index])


def link_name(index: int) -> str:
    return f"adnode{index}"


def _json(*words: str) -> list[dict[str, Any]]:
    return json.loads(run("ip", "-json", *words) or "[]")  # type: ignore[no-any-return]


def _link(name: str) -> dict[str, Any] | None:
    found = [link for link in _json("-details", "link", "show") if link["ifname"] == name]
    return found[0] if found else None


def ensure_bridge(paths: Paths) -> None:
    """Makes the bridge with the host's address. Its alias names the cluster that it belongs to."""
    bridge = _link(BRIDGE)
    if bridge is None:
        _check_addresses_are_free()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "link", "set", BRIDGE, "alias", str(paths.state))
    # Without an address of its own the bridge has the lowest of its ports', which changes when that node is stopped,
    # and everybody else would lose the host until its neighbours ask for the address again.
    run("ip", "link", "set", BRIDGE, "address", BRIDGE_ADDRESS)
    # Nodes reach one another's pods through the host: that is meant, so no advice to go another way.
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/send_redirects").write_text("0")
    run("ip", "addr", "replace", f"{HOST_IP}/24", "dev", BRIDGE)
    # What is sent to pods that do not exist, such as simulated ones, must not leave the machine.
    run("ip", "route", "replace", "unreachable", POD_NETWORK)
    run("ip", "link", "set", BRIDGE, "up")


def _check_addresses_are_free() -> None:
    ours = [ipaddress.ip_network(network) for network in (NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK)]
    for route in _json("route", "show"):
        if route["dst"] == "default" or route.get("type") == "unreachable":
            continue
        theirs = ipaddress.ip_network(route["dst"], strict=False)
        for network in ours:
            if network.version == theirs.version and network.overlaps(theirs):
                raise ClusterError(
                    f"the cluster needs the addresses {network}, but there is a route to {theirs} by "
                    f"{route.get('dev')}: remove that network first"
                )


def ensure_node(index: int, pid: int) -> None:
    """Connects the network namespace of the process ``pid``, and undoes a cut."""
    link = link_name(index)
    if _link(link) is None:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    run("ip", "link", "set", link, "master", BRIDGE, "up")
    commands = f"addr replace {node_ip(index)}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
    commands += f"route replace default via {HOST_IP}\n"
    run(*enter(pid, "net"), "ip", "-batch", "-", text=commands)
    # Pods behind the node's own bridge reach Services of pods beside them only if bridged packets are filtered too.
    settings = "echo 1 >/proc/sys/net/ipv4/ip_forward; "
    settings += "f=/proc/sys/net/bridge/bridge-nf-call-iptables; [ ! -e $f ] || echo 1 >$f"
    run(*enter(pid, "net"), "sh", "-c", settings)
    run("ip", "route", "replace", pod_subnet(index), "via", node_ip(index), "dev", BRIDGE)


def cut(index: int) -> None:
    """Nothing passes between the node and the rest any more, in either direction."""
    if _link(link_name(index)) is not None:
        run("ip", "link", "set", link_name(index), "down")


def disconnect(index: int) -> None:
    """Removes the node's link, once nobody is left at its other end."""
    _delete(link_name(index))


def is_connected(index: int) -> bool:
    link = _link(link_name(index))
    return link is not None and "UP" in link["flags"] and link.get("master") == BRIDGE


def remove() -> None:
    """Removes every link of ours, the routes with them, and the Service tables of the host's kube-proxy."""
    for link in _json("link", "show"):
        if link.get("master") == BRIDGE:
            _delete(link["ifname"])
    _delete(BRIDGE)
    if any(route["dst"] == POD_NETWORK for route in _json("route", "show", "type", "unreachable")):
        run("ip", "route", "delete", "unreachable", POD_NETWORK)
    for table in _service_tables():
        run("nft", "delete", *table.split())


def _delete(name: str) -> None:
    """Removes a link if it is there: a node's goes by itself, a moment after the last process at its other end."""
    try:
        if _link(name) is not None:
            run("ip", "link", "delete", name)
    except ClusterError:
        if _link(name) is not None:
            raise


def has_service_tables() -> bool:
    return bool(_service_tables())


def _service_tables() -> list[str]:
    """kube-proxy's tables of the host, as "table FAMILY NAME"."""
    return [line for line in run("nft", "list", "tables").splitlines() if line.endswith(" kube-proxy")]


def owner() -> str | None:
    """The state folder of the cluster that has the bridge."""
    bridge = _link(BRIDGE)
    return bridge.get("ifalias", "another program") if bridge else None


def check_owner(paths: Paths) -> None:
    """This machine runs one cluster at a time."""
    present = owner()
    if present not in (None, str(paths.state)):
        raise ClusterError(
            f"the network bridge {BRIDGE} belongs to {present}: first bring that cluster down, with "
            f"`ADAPTRAIN_STATE={present} python -m localcluster down`"
        )


def check_port(host: str, port: int, user: str) -> None:
    """Fails if someone else listens where ``user`` is about to."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holders = run("ss", "--listening", "--tcp", "--numeric", "--processes", "--no-header", f"sport = :{port}")
            raise ClusterError(
                f"{user} needs {host}:{port}, but it is taken ({error.strerror}): stop what listens there: "
                + " ".join(holders.split())
            ) from None
