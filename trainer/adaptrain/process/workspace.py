"""The folder that a user's code runs in: as under ``adaptrain run``, it can write there and finds its packages."""

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from adaptrain.errors import InvalidJob
from adaptrain.process.environment import path
from adaptrain.process.packages import bin_folder, site_packages

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
MOST_FILES = 20_000
"""Bounds of what is copied of an image's working directory."""


def enter() -> None:
    """Enter the folder of the user's files, or a copy of it where it can't be written to.

    A ConfigMap and an image's own folder are read-only in a pod. What is written into the copy is gone with the pod.

    Raises:
        InvalidJob: there is no such folder, or it can't be read.
    """
    _add_packages()
    source, work = path("ADAPTRAIN_SOURCE_DIR"), path("ADAPTRAIN_WORK_DIR")
    folder = source or Path.cwd()
    try:
        if work is not None and not os.access(folder, os.W_OK) and folder != Path("/"):
            folder = _copied(folder, work, bounded=source is None)
        os.chdir(folder)
    except OSError as error:
        raise InvalidJob(f"script.source: {folder} can't be entered: {error.strerror or error}") from error


def _copied(folder: Path, work: Path, bounded: bool) -> Path:
    if bounded and (reason := _too_much(folder)) is not None:
        log.warning("%s, the working directory, is read-only, and not copied since it holds %s", folder, reason)
        return folder
    # A ConfigMap's files are links into a hidden folder, which the kubelet exchanges when they change.
    hidden = shutil.ignore_patterns("..*")
    # Into a folder of ours: the volume's own is the kubelet's, who alone may change its mode and times.
    copy = work / "files"
    shutil.copytree(folder, copy, symlinks=bounded, ignore=hidden, dirs_exist_ok=True)
    for copied in (copy, *copy.rglob("*")):
        if not copied.is_symlink():
            copied.chmod(copied.stat().st_mode | stat.S_IWUSR)
    return copy


def _too_much(folder: Path) -> str | None:
    size = count = 0
    for entry in _files(folder):
        size, count = size + entry.stat(follow_symlinks=False).st_size, count + 1
        if size > MOST_BYTES:
            return f"more than {MOST_BYTES >> 20} MiB"
        if count > MOST_FILES:
            return f"more than {MOST_FILES} files"
    return None


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                yield entry


def _add_packages() -> None:
    """Have this process's successors find what ``script.packages`` names, after the user's own paths."""
    installed = path("ADAPTRAIN_PACKAGES_DIR")
    if installed is None:
        return
    for variable, added in (("PYTHONPATH", site_packages(installed)), ("PATH", bin_folder(installed))):
        before = os.environ.get(variable)
        os.environ[variable] = str(added) if not before else f"{before}{os.pathsep}{added}"
