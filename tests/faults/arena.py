"""A local job to which faults are done, with everything that replaces what is lost, as an operator would."""

import contextlib
import ctypes
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptrain.local.processes import PRELOADED, LocalJob
from adaptrain_api.contracts.coordinator_api import Progress

from tests.e2e.local_jobs import job
from tests.faults.schedule import Fault
from tests.faults.wires import Wires, sever

PRELOADED.append("tests.faults.arena")
RECOVERY_SECONDS = 30.0
"""Bound of every wait: silence is noticed after 3 s, a new coordinator waits 2 s, a start takes 2 s if all is busy."""
START_SECONDS = 180.0
"""The first workers may have to import torch from a disk that was never read."""
POLL_SECONDS = 0.05
SIZES = {1: (3, 5), 2: (2, 3)}
"""Workers at first, and at most, by the number of processes of each."""
SLOW_PULSES = 10
DISK_MEGABYTES = 32
STEPS = 10


class Violation(AssertionError):
    """Something that must never happen."""


class Arena:
    """Use as a context manager. All that is done to the job is told in ``story``."""

    def __init__(self, path: Path, processes: int, micro_size: int | None, pace: float) -> None:
        self.checkpoints, self.trace = path / "checkpoints", path / "trace"
        self.checkpoints.mkdir(parents=True)
        spec: dict[str, Any] = {
            "workers": {"min": 1, "max": 10, "processesPerWorker": processes},
            "phase": {"batch": {"size": 64, "microSize": micro_size}},
            "model": {"name": "tests.faults.model:mlp", "args": {"seconds": pace}},
            "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "x"}}, "everySeconds": 1, "keep": 3},
        }
        self.local = LocalJob(job(**spec), checkpoints=self.checkpoints, trace=self.trace)
        self.wires = Wires(self.local.control_address)
        self.story: list[str] = []
        self.commits: dict[str, float] = {}
        """Every checkpoint that was ever seen, with the time at which it was renamed into place."""
        self._wanted, self._most = SIZES[processes]
        self._replacements = 0
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._asked: set[int] = set()
        self._killed: set[int] = set()
        self._torn: set[int] = set()
        """Workers whose own processes were cut off from each other, which no network does: they may fail."""
        self._began = time.monotonic()

    def __enter__(self) -> "Arena":
        _mount(self.checkpoints)
        try:
            self.local.start_coordinator()
            self.recover(START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.local.__exit__()
        self.wires.close()
        _unmount(self.checkpoints)

    def do(self, fault: Fault) -> None:
        """Wait until it is due, and let it happen."""
        if fault.calm:
            self.recover()
        self._pause(fault.after)
        workers = self.local.alive()
        if not workers:
            self.recover()
            workers = self.local.alive()
        victim = workers[int(fault.whom * len(workers))]
        self._tell(f"{fault}: worker-{victim} of {workers}")
        getattr(self, "_" + fault.kind.replace("-", "_"))(victim, fault)

    def recover(self, seconds: float = RECOVERY_SECONDS) -> Progress:
        """Wait until nothing is under way any more and all that live train together."""
        if self._due:
            self._pause(max(due for due, _ in self._due) - time.monotonic())
        self._tell("recover")
        until = time.monotonic() + seconds
        begin: int | None = None
        progress: Progress | None = None
        while time.monotonic() < until:
            self.keep()
            progress = self.local.progress()
            members = {m.id for m in progress.members} if progress is not None else set()
            alive = {str(n) for n in self.local.alive()}
            if progress is not None and progress.state == "running" and members == alive and len(alive) == self._wanted:
                step = min(m.step for m in progress.members)
                begin = step if begin is None else min(begin, step)
                if step >= begin + STEPS:
                    return progress
            time.sleep(POLL_SECONDS)
        raise Violation(f"not all that live train together after {seconds:.0f} s: {progress}\n{self.tell()}")

    def stop(self) -> int:
        """Ask all workers to leave. Returns the step at which they did."""
        self.recover()
        self._tell("the end")
        self._wanted = 0
        last = self.local.alive()
        for number in last:
            self._leave(number)
        until = time.monotonic() + RECOVERY_SECONDS
        while self.local.alive():
            if time.monotonic() > until:
                raise Violation(f"workers that were asked to leave did not\n{self.tell()}")
            self.keep()
            time.sleep(POLL_SECONDS)
        self.keep()
        # Who left earlier may have been further: what only lost workers knew is trained again.
        return max(r.step for n in last if (r := self.local.result(n)) is not None)

    def keep(self) -> None:
        """Do what is due; replace workers that are gone and kill those that were taken for lost."""
        now = time.monotonic()
        for item in [item for item in self._due if item[0] <= now]:
            self._due.remove(item)
            item[1]()
        for path in self.checkpoints.glob("step-*"):
            with contextlib.suppress(FileNotFoundError):
                self.commits.setdefault(path.name, path.stat().st_ctime)
        for number, process in self.local.workers.items():
            if (code := process.exitcode) is None or (number in self._killed and code == -signal.SIGKILL):
                continue
            if number in self._torn and code == 1:
                continue
            # Who is asked to end while it still starts has nothing to finish.
            if code not in (0, -signal.SIGTERM) or number not in self._asked:
                raise Violation(f"worker-{number} ended by itself, code {code}\n{self.tell()}")
        if (progress := self.local.progress()) is not None:
            for silent in progress.silent:
                if (number := int(silent.id)) in self.local.alive():
                    self._tell(f"worker-{number} is silent, and is killed")
                    self._end(number)
        for _ in range(self._wanted - len(self.local.alive()) - self._replacements):
            self._start()

    def tell(self) -> str:
        """What was done and what everybody said."""
        logs = [f"--- worker-{n}\n{self.local.log(f'worker-{n}')[-2500:]}" for n in self.local.workers]
        for number in itertools.count(1):
            if not (log := self.local.log(f"coordinator-{number}")):
                break
            logs.append(f"--- coordinator-{number}\n{log[-5000:]}")
        return "\n".join([*self.story, *logs])

    # Faults

    def _kill(self, victim: int, fault: Fault) -> None:
        self._signal(victim, signal.SIGKILL, self._mate(victim, fault))
        self._replace_after(fault.lasts)

    def _hang(self, victim: int, fault: Fault) -> None:
        pid = self._mate(victim, fault)
        self._signal(victim, signal.SIGSTOP, pid)
        self._later(fault.lasts, lambda: self._signal(victim, signal.SIGCONT, pid))

    def _freeze(self, victim: int, fault: Fault) -> None:
        self._signal(victim, signal.SIGSTOP, self._mate(victim, fault))
        self._later(fault.lasts, lambda: self._end(victim))

    def _slow(self, victim: int, fault: Fault) -> None:
        pulse = fault.lasts / SLOW_PULSES / 2
        for n in range(SLOW_PULSES):
            self._later(2 * n * pulse, lambda: self.local.signal(victim, signal.SIGSTOP))
            self._later((2 * n + 1) * pulse, lambda: self.local.signal(victim, signal.SIGCONT))

    def _leave(self, victim: int, fault: Fault | None = None) -> None:
        self._asked.add(victim)
        self.local.signal(victim, signal.SIGTERM)

    def _join(self, victim: int, fault: Fault) -> None:
        if self._wanted >= self._most:
            self._wanted -= 1
            self._leave(victim)
        else:
            self._wanted += 1

    def _hang_up(self, victim: int, fault: Fault) -> None:
        self.wires.hang_up(self._process(victim))

    def _mute(self, victim: int, fault: Fault) -> None:
        self.wires.mute(self._process(victim), "up" if fault.whom * 1000 % 1 < 0.5 else "down")
        self._later(fault.lasts, self.wires.unmute)

    def _sever(self, victim: int, fault: Fault) -> None:
        if self._local_ranks(victim):
            self._torn.add(victim)
        sever(self._process(victim), self.wires.port)

    def _coordinator(self, victim: int, fault: Fault) -> None:
        coordinator = self.local.coordinator
        if coordinator is None or coordinator.poll() is not None:
            return  # killed already, and its successor is due
        coordinator.kill()
        coordinator.wait()
        self._later(fault.lasts, self.local.start_coordinator)

    def _all(self, victim: int, fault: Fault) -> None:
        for number in self.local.alive():
            self._end(number)

    def _full(self, victim: int, fault: Fault) -> None:
        filler = self.checkpoints / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self._later(fault.lasts, lambda: filler.unlink(missing_ok=True))

    # Parts of them

    def _start(self) -> None:
        self.local.start_worker(ADAPTRAIN_COORDINATOR=f"127.0.0.1:{self.wires.port}")

    def _end(self, number: int) -> None:
        self._killed.add(number)
        self.local.signal(number, signal.SIGKILL)
        self.local.workers[number].join()

    def _mate(self, number: int, fault: Fault) -> int:
        """One of a worker's processes."""
        every = [self._process(number), *self._local_ranks(number)]
        return every[int(fault.whom * 997) % len(every)]

    def _local_ranks(self, number: int) -> list[int]:
        """A worker's processes beside the first."""
        lead = self._process(number)
        try:
            return sorted(map(int, Path(f"/proc/{lead}/task/{lead}/children").read_text().split()))
        except OSError:  # it is gone
            return []

    def _signal(self, number: int, what: signal.Signals, pid: int) -> None:
        """Signal a process of a worker, which ends with it."""
        if pid == self._process(number):
            if what == signal.SIGKILL:
                self._end(number)
            else:
                self.local.signal(number, what)
            return
        self._killed.add(number)
        if number in self.local.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)
            if what == signal.SIGKILL:
                self.local.workers[number].join(RECOVERY_SECONDS)

    def _process(self, number: int) -> int:
        pid = self.local.workers[number].pid
        assert pid is not None
        return pid

    def _replace_after(self, seconds: float) -> None:
        """Keep the place of a worker empty for a while."""
        self._replacements += 1

        def replace() -> None:
            self._replacements -= 1

        self._later(seconds, replace)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, what))

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.keep()
            time.sleep(POLL_SECONDS)
        self.keep()

    def _tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:6.2f} {time.strftime('%H:%M:%S')} {what}")


def _mount(folder: Path) -> None:
    """A disk of its own, which can be filled without harm to anything else."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = f"size={DISK_MEGABYTES}m".encode()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, size) != 0:
        raise PermissionError(f"a file system of its own for {folder}: {os.strerror(ctypes.get_errno())}; run as root")


def _unmount(folder: Path) -> None:
    detach = 2
    ctypes.CDLL(None).umount2(str(folder).encode(), detach)
