"""Control groups: every process of the cluster is in one of ours, so that none can be lost.

``adaptrain/control-plane`` holds the daemons of the host, ``adaptrain/<node>/system`` those of a node, and the kubelet
keeps the node's pods under ``adaptrain/<node>/kubepods``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

ROOT = "adaptrain"
_MOUNT = Path("/sys/fs/cgroup")


def _hierarchies() -> list[Path]:
    """The one tree of cgroup v2, or the tree of each controller of v1."""
    if (_MOUNT / "cgroup.controllers").exists():
        return [_MOUNT]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted({Path(mount[1]).resolve() for mount in mounts if mount[2] == "cgroup"})


def create(*groups: str) -> None:
    """Makes the groups, with their parents, ready to hold processes and to hand out every controller."""
    for hierarchy in _hierarchies():
        for group in groups:
            parent = hierarchy
            for part in (ROOT, *group.split("/")):
                _delegate(parent)
                child = parent / part
                child.mkdir(exist_ok=True)
                _inherit_cpuset(parent, child)
                parent = child


def _delegate(group: Path) -> None:
    """v2: what the parent does not hand down, a pod cannot be limited by."""
    if (group / "cgroup.controllers").exists():
        wanted = " ".join(f"+{name}" for name in (group / "cgroup.controllers").read_text().split())
        (group / "cgroup.subtree_control").write_text(wanted)


def _inherit_cpuset(parent: Path, child: Path) -> None:
    """v1: a group takes no process before it was told its processors and memory."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = child / name
        if own.exists() and not (child / "cgroup.controllers").exists() and not own.read_text().strip():
            own.write_text((parent / name).read_text())


def entrances(group: str) -> list[Path]:
    """The files that a process writes its id to, to be in the group."""
    return [hierarchy / ROOT / group / "cgroup.procs" for hierarchy in _hierarchies()]


def processes(group: str = "") -> set[int]:
    """All processes in the group and below it."""
    found: set[int] = set()
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / ROOT / group):
            try:
                found.update(int(line) for line in (Path(folder) / "cgroup.procs").read_text().split())
            except OSError:
                continue  # the group went away while we looked
    return found - {0}  # 0: in a pid namespace that we cannot see into


def kill(group: str = "", *, timeout: float = 20) -> None:
    """Kills all that is in the group, however fast it forks, and waits until it is gone."""
    deadline = time.monotonic() + timeout
    while (left := processes(group)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def remove(group: str = "", *, timeout: float = 10) -> None:
    """Removes the empty group and those below it. The kernel needs a moment to let go of the last process."""
    deadline = time.monotonic() + timeout
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / ROOT / group, topdown=False):
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def listing() -> list[str]:
    """Every group of the machine, for comparison."""
    return sorted(folder for hierarchy in _hierarchies() for folder, _, _ in os.walk(hierarchy))
