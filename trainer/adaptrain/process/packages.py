"""``script.packages``: what a script imports beside the image's own packages.

An init container installs them into a volume with pip, from wheels only, so that nothing of theirs runs there. What
the image has stays as it is: its versions are constraints, and a conflict is told rather than shadowed.
"""

import logging
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)

WORDS = 1500
"""Characters of pip's last words that are told."""
UNREACHABLE = ("Retrying (", "Connection", "timed out", "Temporary failure", "HTTP error 5")
"""Words of pip where an index could not be asked: trying again may help."""


def install(packages: Iterable[str], into: Path, cache: Path | None = None) -> None:
    """Install packages into a folder of their own.

    Args:
        cache: where downloads are kept for the next worker.

    Raises:
        InvalidJob: there is no such package or version, no wheel of it, or it conflicts with the image.
        OSError: an index can't be reached.
    """
    with tempfile.TemporaryDirectory() as temporary:
        constraints = Path(temporary) / "image.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(_installed().items())))
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command += [
            "--only-binary",
            ":all:",
            "--prefix",
            str(into),
            "--no-warn-script-location",
            "--progress-bar",
            "off",
        ]
        command += ["--constraint", str(constraints)]
        command += ["--no-cache-dir"] if cache is None else ["--cache-dir", str(cache)]
        done = subprocess.run([*command, "--", *packages], stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode == 0:
        return
    words = " ".join(done.stderr.split())[-WORDS:]
    if any(word in done.stderr for word in UNREACHABLE):
        raise OSError(f"script.packages: the package index can't be asked (PIP_INDEX_URL in workers.env): {words}")
    raise InvalidJob(
        f"script.packages can't be installed beside what the image has: {words}: correct them, or build an image of"
        " your own"
    )


def missing(packages: Iterable[str]) -> list[str]:
    """Those packages that this Python does not have in that version."""
    installed = {_normal(name): version for name, version in _installed().items()}
    return [one for one in packages if installed.get(_normal(re.split(r"[\[=]", one)[0])) != one.partition("==")[2]]


def site_packages(folder: Path) -> Path:
    """Where Python finds what was installed into a folder."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def bin_folder(folder: Path) -> Path:
    """Where the programs are that were installed into a folder."""
    return Path(sysconfig.get_path("scripts", vars={"base": str(folder), "platbase": str(folder)}))


def _installed() -> dict[str, str]:
    return {found.metadata["Name"]: found.version for found in metadata.distributions() if found.metadata["Name"]}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
