"""The command line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from localcluster.api import TOOLS, Cluster, Status
from localcluster.config import CHECKOUT
from localcluster.errors import ClusterError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 1 and one clear sentence on stderr if it fails."""
    args = _parser().parse_args(argv)
    try:
        _run(args, Cluster())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the machine refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the command again to go on, or `down` to clean up", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m localcluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or repair it")
    up.add_argument("--nodes", type=int, default=2, help="at least so many nodes; 0: control plane only (default: 2)")
    commands.add_parser("down", help="remove the cluster and all its traces but the caches")
    status = commands.add_parser("status", help="show what runs")
    status.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    commands.add_parser("snapshot", help="print, as JSON, all that a cluster may add to this machine")
    commands.add_parser("prometheus", help="run a Prometheus that scrapes the cluster's pods; prints its URL")
    tool = commands.add_parser("tool", help="print the path of a program, got first if need be")
    tool.add_argument("name", choices=TOOLS)

    image = commands.add_parser("image", help="images").add_subparsers(dest="action", required=True)
    image_build = image.add_parser("build", help="build an image")
    image_build.add_argument("--target", help="the stage of the Dockerfile, such as operator or trainer")
    image_build.add_argument("--tag", required=True)
    image_build.add_argument("--file", type=Path, default=CHECKOUT / "Dockerfile", help="default: the repository's")
    image_load = image.add_parser("load", help="bring an image to the nodes; prints the reference that pods use")
    image_load.add_argument("name")

    node = commands.add_parser("node", help="nodes").add_subparsers(dest="action", required=True)
    node.add_parser("add", help="add a node; prints its name")
    for action, text in (
        ("stop", "cut a node's power"),
        ("start", "turn a node on"),
        ("cut", "take a node off the network"),
        ("heal", "put a node back on the network"),
    ):
        node.add_parser(action, help=text).add_argument("name")
    fake = node.add_parser(
        "fake",
        help="make it N simulated nodes",
        description="Pods on simulated nodes run until they are deleted, or succeed after the time in their annotation "
        "pod-complete.stage.kwok.x-k8s.io/delay. They must tolerate the taint kwok.x-k8s.io/node=fake:NoSchedule.",
    )
    fake.add_argument("count", type=int, metavar="N")
    return parser


def _run(args: argparse.Namespace, cluster: Cluster) -> None:
    match args.command:
        case "up":
            cluster.up(args.nodes)
        case "down":
            cluster.down()
        case "status":
            status = cluster.status()
            if args.json:
                print(json.dumps(asdict(status), indent=1))
            else:
                _show(status)
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "snapshot":
            print(json.dumps(cluster.snapshot(), indent=1))
        case "prometheus":
            print(cluster.prometheus())
        case "tool":
            print(cluster.tool(args.name))
        case "image":
            if args.action == "build":
                cluster.image_build(args.tag, args.target, args.file)
            else:
                print(cluster.image_load(args.name))
        case "node":
            _node(args, cluster)


def _node(args: argparse.Namespace, cluster: Cluster) -> None:
    match args.action:
        case "add":
            print(cluster.node_add())
        case "stop":
            cluster.node_stop(args.name)
        case "start":
            cluster.node_start(args.name)
        case "cut":
            cluster.node_cut(args.name)
        case "heal":
            cluster.node_heal(args.name)
        case "fake":
            cluster.node_fake(args.count)


def _show(status: Status) -> None:
    # Paths are to be copied, so a pipe or file has them whole.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    components = Table("component", "state", "pid", "log", box=None)
    for item in status.components:
        components.add_row(item.name, item.state, str(item.pid or "-"), item.log)
    nodes = Table("node", "machine", "Kubernetes", "address", box=None)
    for node in status.nodes:
        nodes.add_row(node.name, node.state, "Ready" if node.ready else "NotReady", node.ip)
    console.print(components)
    console.print()
    console.print(nodes)
