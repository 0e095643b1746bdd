"""Installs the Debian packages that a cluster needs, without their services."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster.command import PATH, file_lock, run, run_logged
from localcluster.config import cache_dir
from localcluster.errors import ClusterError
from localcluster.progress import step

CLUSTER = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "nft": "nftables",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "docker-registry": "docker-registry",
}
"""What runs a cluster: a program, and the package that brings it."""

IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux"}
PROMETHEUS = {"prometheus": "prometheus"}

_POLICY = Path("/usr/sbin/policy-rc.d")
# Where the packages' own services would start at the next boot.
_UNITS = ("containerd", "docker-registry", "prometheus")


def find(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def install(*needs: dict[str, str]) -> None:
    """Installs what is missing; at once when nothing is."""
    wanted = {program: package for need in needs for program, package in need.items()}
    if not _missing(wanted):
        return
    with file_lock(cache_dir() / "packages.lock", "another installation of packages"):
        missing = _missing(wanted)
        if not missing:
            return
        if find("apt-get") is None:
            raise ClusterError(f"these packages are missing and there is no apt-get: install {' '.join(missing)}")
        units = [unit for unit in _UNITS if unit in missing]
        with step(f"installing {' '.join(missing)}"), _no_services():
            env = {"DEBIAN_FRONTEND": "noninteractive"}
            log = cache_dir() / "log" / "apt.log"
            wait = "-oDPkg::Lock::Timeout=300"
            run_logged(["apt-get", wait, "update"], log, env=env)
            run_logged(["apt-get", wait, "install", "--yes", "--no-install-recommends", *missing], log, env=env)
            if units and find("systemctl"):
                run("systemctl", "--quiet", "disable", *units)
        if still := _missing(wanted):
            raise ClusterError(f"apt-get installed {' '.join(still)}, but their programs are not on the PATH")


def _missing(wanted: dict[str, str]) -> list[str]:
    return sorted({package for program, package in wanted.items() if find(program) is None})


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks ``policy-rc.d`` before it starts a new package's service: for now it says no."""
    aside = _POLICY.with_suffix(".adaptrain")
    if _POLICY.exists() and not aside.exists():
        _POLICY.rename(aside)
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if aside.exists():
            aside.rename(_POLICY)
        else:
            _POLICY.unlink()
