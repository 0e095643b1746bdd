"""Runs other programs, and says clearly what failed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.progress import step

_TAIL_LINES = 12
# Debian keeps administrators' programs in sbin, which a user's PATH may lack.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def run(
    *argv: str | Path, text: str | None = None, env: Mapping[str, str] | None = None, timeout: float | None = 120
) -> str:
    """Runs a program and returns what it printed; its last words are in the error if it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=text or "",
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": PATH, **(env or {})},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"the program {words[0]} is missing: install it, or run `up`, which does") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(words[:4])} …` did not finish within {timeout:.0f} s; try again") from None
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(words[:6])}` failed: {tail(done.stderr or done.stdout)}")
    return done.stdout


def run_logged(argv: Sequence[str | Path], log: Path, *, cwd: Path | None = None, env: Mapping[str, str]) -> None:
    """Runs a long program with its output in a file, which the error names."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in argv]
    with log.open("w") as output:
        try:
            code = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PATH": PATH, **env},
                check=False,
            ).returncode
        except FileNotFoundError:
            raise ClusterError(f"the program {words[0]} is missing: install it, or run `up`, which does") from None
    if code != 0:
        raise ClusterError(f"`{' '.join(words[:3])} …` failed, see {log}; its last lines:\n{tail_of(log)}")


def write(file: Path, text: str) -> None:
    """Writes the file if that changes it: kube-proxy, for one, ends itself when its configuration is touched."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def tail_of(log: Path) -> str:
    """The last lines of a log that may be long."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return tail(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return "(it wrote nothing)"


@contextmanager
def file_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Holds a lock that other processes respect; it goes when its holder dies.

    The file may be deleted together with its folder by the one before us, and we would then hold a lock that
    nobody else can see: so it only counts while the path still leads to it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Python opens files close-on-exec: no daemon that we start inherits the lock.
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with step(f"waiting for {waiting_for}"):
                    fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if same:
                yield
                return
        time.sleep(0.05)
