"""Leaves nothing behind, whatever state the cluster is in; and shows that this is so."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from localcluster import cgroups, network, sysctls
from localcluster.config import Paths
from localcluster.node import MOUNT_POINTS
from localcluster.packages import find

SYSCTLS = "sysctls.json"
CREATED = "created.json"


def remember(paths: Paths) -> None:
    """Notes, before the first start, which folders of the host are about to be made."""
    file = paths.state / CREATED
    if not file.exists():
        missing = [str(point) for point in MOUNT_POINTS if not point.exists()]
        file.write_text(json.dumps(missing))


def remove_everything(paths: Paths) -> None:
    """Kills, unmounts, disconnects, restores and deletes, in that order."""
    cgroups.kill()
    cgroups.remove()
    for point in _mounts_below(paths.state):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    network.remove()
    sysctls.restore(paths.state / SYSCTLS)
    with contextlib.suppress(OSError, ValueError):
        for created in json.loads((paths.state / CREATED).read_text()):
            os.rmdir(created)
    shutil.rmtree(paths.state, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def snapshot() -> dict[str, Any]:
    """All that a cluster adds to a machine, for a comparison of before and after."""
    tables = _output("nft", "list", "ruleset") if find("nft") else ""
    return {
        "processes": [_command_line(pid) for pid in sorted(cgroups.processes())],
        "mounts": Path("/proc/self/mounts").read_text().splitlines(),
        "links": sorted(link["ifname"] for link in json.loads(_output("ip", "-json", "link"))),
        "namespaces": _namespaces(),
        "cgroups": cgroups.listing(),
        "routes": sorted(line.strip() for line in _output("ip", "route", "show", "table", "all").splitlines()),
        "nftables": tables.splitlines(),
        "sysctls": sysctls.listing(),
    }


def _output(*argv: str) -> str:
    return subprocess.run([find(argv[0]) or argv[0], *argv[1:]], text=True, capture_output=True, check=True).stdout


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def _namespaces() -> list[str]:
    """The network namespaces that any process is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(process / "ns" / "net"))
    return sorted(found)
