"""Daemons that outlive the command that starts them, each with a record and a log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster import cgroups
from localcluster.command import tail_of
from localcluster.config import Paths
from localcluster.errors import ClusterError

# Joins the control groups named before "--", then becomes the program after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 1; shift; done; shift; exec "$@"'
_POLL = 0.05


@dataclass(frozen=True)
class Daemon:
    """A program to keep running. ``enter`` is the command that leads into a node's namespaces, if it lives in one."""

    name: str
    argv: tuple[str, ...]
    cgroup: str
    enter: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Record:
    """A process that was started. The start time and boot tell it from a later one with the same id."""

    name: str
    pid: int
    started: int
    boot: str
    command: list[str]

    @property
    def alive(self) -> bool:
        return _started(self.pid) == self.started and self.boot == _boot()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """When the process began, in clock ticks; None for a dead one, a zombie included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Processes:
    """The daemons of the cluster, as recorded in the state folder."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def log(self, name: str) -> Path:
        return self._paths.log / f"{name}.log"

    def record(self, name: str) -> Record | None:
        try:
            return Record(**json.loads((self._paths.processes / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def pid(self, name: str) -> int | None:
        """The process's id, or None if it is not running."""
        record = self.record(name)
        return record.pid if record and record.alive else None

    def since(self, name: str) -> float:
        """When the process was started."""
        return (self._paths.processes / f"{name}.json").stat().st_mtime

    def start(self, daemon: Daemon) -> bool:
        """Makes the daemon run as described; returns whether it had to be started."""
        command = [*daemon.enter, *daemon.argv]
        record = self.record(daemon.name)
        if record and record.alive:
            if record.command == command:
                return False
            self.stop(daemon.name)
        log = self.log(daemon.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        files = [str(file) for file in cgroups.entrances(daemon.cgroup)]
        with log.open("ab") as output:
            child = subprocess.Popen(
                ["sh", "-c", _JOIN, "join", *files, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **(daemon.env or {})},
                start_new_session=True,
            )
        # A namespace's doorkeeper stays outside and waits; the daemon itself is its child.
        pid = child.pid if not daemon.enter else self._child(daemon.name, child)
        started = _started(pid)
        if started is None:
            raise self._died(daemon.name)
        self._paths.processes.mkdir(parents=True, exist_ok=True)
        record = Record(daemon.name, pid, started, _boot(), command)
        file = self._paths.processes / f"{daemon.name}.json"
        file.with_suffix(".new").write_text(json.dumps(asdict(record)))
        file.with_suffix(".new").rename(file)
        return True

    def _child(self, name: str, parent: subprocess.Popen[bytes]) -> int:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while parent.poll() is None:
            with contextlib.suppress(OSError):
                if pids := children.read_text().split():
                    return int(pids[0])
            time.sleep(0.01)
        raise self._died(name)

    def wait(self, name: str, ready: Callable[[], bool], *, timeout: float) -> None:
        """Waits until the daemon does its work; its log is in the error if it dies first."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.pid(name) is None:
                raise self._died(name)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{name} runs but was not ready within {timeout:.0f} s, see {self.log(name)}; its last lines:\n"
                    + tail_of(self.log(name))
                )
            time.sleep(_POLL)

    def _died(self, name: str) -> ClusterError:
        log = self.log(name)
        return ClusterError(f"{name} died right after its start, see {log}; its last lines:\n{tail_of(log)}")

    def stop(self, name: str) -> None:
        """Kills the daemon; nothing here needs a gentle end."""
        while (pid := self.pid(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)
        self.forget(name)

    def forget(self, name: str) -> None:
        (self._paths.processes / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(file.stem for file in self._paths.processes.glob("*.json"))


def wait_until(what: str, ready: Callable[[], bool], *, timeout: float, poll: float = 0.1) -> None:
    """Waits for something that is no single daemon's work."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not happen within {timeout:.0f} s: see `python -m localcluster status`")
        time.sleep(poll)


def enter(pid: int, *namespaces: str) -> tuple[str, ...]:
    """The command prefix that runs something in another process's namespaces."""
    return ("nsenter", "--target", str(pid), *(f"--{name}" for name in namespaces), "--")


def as_argv(program: Path | str, flags: Mapping[str, object], *words: str) -> tuple[str, ...]:
    """A command line from named flags."""
    parts: Sequence[str] = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in flags.items()
    ]
    return (str(program), *words, *parts)
