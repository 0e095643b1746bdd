"""Builds images from the repository's Dockerfile and brings them to where the nodes pull."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from localcluster import packages
from localcluster.command import file_lock, run_logged
from localcluster.config import HOST_IP, PAUSE_IMAGE, REGISTRY, REGISTRY_PORT, cache_dir
from localcluster.errors import ClusterError
from localcluster.progress import step

BASE = "localhost/debian:bookworm-slim"
_SPACE = 15 << 30
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build(context: Path, dockerfile: Path, target: str | None, tag: str) -> None:
    """Builds ``target`` of the Dockerfile as ``tag``, in buildah's own store."""
    if not dockerfile.exists():
        raise ClusterError(f"there is no {dockerfile}: name the Dockerfile with --file")
    packages.install(packages.IMAGES)
    with _store():
        _ensure_base()
        flags = ["--isolation", "chroot", "--layers", "--build-arg", f"BASE_IMAGE={BASE}", "--file", str(dockerfile)]
        if target:
            flags += ["--target", target]
        if certificates := os.environ.get("SSL_CERT_FILE"):
            # Behind a private certificate authority, builds trust what this machine trusts. The file is at a place of
            # its own, as packages write to the usual one.
            inside = "/run/certificates.crt"
            flags += ["--volume", f"{certificates}:{inside}:ro", "--build-arg", f"SSL_CERT_FILE={inside}"]
        with step(f"building the image {tag}"):
            _buildah("build", *flags, "--tag", tag, str(context), log=f"image-{tag}")


def load(name: str) -> str:
    """Pushes the image into the cluster's registry; returns the reference that pods use."""
    packages.install(packages.IMAGES)
    short = name.removeprefix("localhost/")
    with _store(), step(f"pushing {name} to the cluster's registry"):
        to = f"docker://{HOST_IP}:{REGISTRY_PORT}/{short}"
        _buildah("push", "--compression-format", "zstd", "--tls-verify=false", name, to, log=f"push-{short}")
    return f"{REGISTRY}/{short}" if ":" in short else f"{REGISTRY}/{short}:latest"


def _store() -> AbstractContextManager[None]:
    return file_lock(cache_dir() / "images.lock", "another use of the images")


def _buildah(command: str, *words: str, log: str) -> None:
    """Runs buildah in a mount namespace of its own, so that none of its mounts outlives it."""
    root = cache_dir() / "images"
    if shutil.disk_usage(cache_dir()).free < _SPACE:
        raise ClusterError(f"images take 15 GB in {cache_dir()}: free some, or set ADAPTRAIN_CACHE to another disk")
    file = cache_dir() / "log" / f"{log.replace('/', '_').replace(':', '_')}.log"
    with tempfile.TemporaryDirectory(prefix="adaptrain-buildah-") as run_root:
        store = ["--storage-driver", "overlay", "--root", str(root), "--runroot", run_root]
        run_logged(["unshare", "--mount", "buildah", *store, command, *words], file, env={})


def _ensure_base() -> None:
    """The image of a minimal Debian, from its packages: no image registry is asked."""
    try:
        _buildah("inspect", "--type", "image", BASE, log="base")
        return
    except ClusterError:
        pass
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="base-") as scratch:
        root = Path(scratch) / "root"
        with step("making a minimal Debian"):
            argv: Sequence[str] = ["debootstrap", "--variant=minbase", "bookworm", str(root)]
            inside = ["unshare", "--mount", *argv]
            run_logged(inside, cache_dir() / "log" / "debootstrap.log", env={})
            for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
                shutil.rmtree(root / leftover, ignore_errors=True)
                (root / leftover).mkdir(parents=True)
            (root / "etc/resolv.conf").unlink(missing_ok=True)
        with step("storing the base image"):
            dockerfile = Path(scratch) / "Dockerfile"
            dockerfile.write_text('FROM scratch\nADD root.tar /\nCMD ["bash"]\n')
            tar = Path(scratch) / "context" / "root.tar"
            tar.parent.mkdir()
            run_logged(["tar", "-C", str(root), "-cf", str(tar), "."], cache_dir() / "log" / "base.log", env={})
            flags = ["--isolation", "chroot", "--file", str(dockerfile), "--tag", BASE]
            _buildah("build", *flags, str(tar.parent), log="base")


def pause_archive(programs: dict[str, Path], folder: Path) -> Path:
    """The image of the pod sandbox, as an archive that containerd imports."""
    archive = folder / "pause.tar"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("pause", "probe"):
            info = tarfile.TarInfo(name)
            data = programs[name].read_bytes()
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for name, data in (("layer.tar", layer.getvalue()), ("config.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive
