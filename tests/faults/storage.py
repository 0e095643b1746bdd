"""Storage that fails: each errno at each call in each phase of a checkpoint's life, in a directory and in a bucket.

python -m tests.faults.storage --schedules 200

A schedule is the lives of a job's lineages on one storage: they load, save, keep and publish, while calls fail for a
while, files are spoiled, and processes end anywhere. After each step the storage is read without faults:

- training never goes on behind the newest good checkpoint, and never begins anew while there is one;
- nothing good is removed but what has as many good newer ones as are kept;
- a published model is what its digest says;
- as soon as storage answers again, a checkpoint can be saved.
"""

import argparse
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import obstore
import torch
from adaptrain.elastic.checkpoint import file_format, manager
from adaptrain.elastic.checkpoint.manager import MODEL_FILE, Checkpoints, Policy
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.storage import directory, object_store
from adaptrain.elastic.storage.directory import Directory, Saved, Storage
from adaptrain.elastic.storage.lineage import Superseded
from adaptrain.elastic.storage.object_store import ObjectStore
from adaptrain.elastic.storage.weights import DIGEST_SUFFIX
from adaptrain.errors import InvalidJob
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError

KEEP = 2
TURNS = 14
"""Phases of a schedule."""
PHASES = ("load", "save", "verify", "publish", "claim")
ERRNOS = (
    errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC, errno.EROFS, errno.ETIMEDOUT,
)  # fmt: skip
CALLS = ("open", "read", "write", "listdir", "stat", "fstat", "rename", "fsync", "unlink", "mkdir", "rmtree", "close")
REFUSALS: tuple[BaseError, ...] = (
    GenericError(
        "Generic S3 error: Error performing GET https://h/b in 90ms, after 5 retries - Server returned non-2xx status"
        " code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>Slower.</Message></Error>"
    ),
    GenericError("Generic S3 error: Error performing GET https://h/b in 60s - HTTP error: TimedOut"),
    PermissionDeniedError(
        "Generic S3 error: Error performing GET https://h/b in 9ms - Server returned non-2xx status code: 403"
        " Forbidden: <Error><Code>AccessDenied</Code></Error>"
    ),
)
REQUESTS = ("list", "head", "get_range", "put", "delete", "open_writer")


class Violation(AssertionError):
    """Something good was lost, passed over or torn."""


class Weather:
    """Which call fails next, with what, and how often."""

    def __init__(self) -> None:
        self.call = ""
        self.error: Exception | None = None
        self.after = self.left = 0
        self.hits: Counter[tuple[str, str, str]] = Counter()
        self.phase = ""

    def turn(self, phase: str, call: str, error: Exception, after: int, times: int) -> None:
        self.phase, self.call, self.error, self.after, self.left = phase, call, error, after, times

    def clear(self) -> None:
        self.left = 0

    def reach(self, call: str) -> None:
        """A call is about to be made."""
        if call != self.call or self.left <= 0:
            return
        if self.after > 0:
            self.after -= 1
            return
        self.left -= 1
        assert self.error is not None
        kind = errno.errorcode[self.error.errno] if isinstance(self.error, OSError) and self.error.errno else ""
        self.hits[(call, kind or type(self.error).__name__, self.phase)] += 1
        raise self.error


class _File(io.FileIO):
    def __init__(self, handle: int, mode: str, weather: Weather) -> None:
        super().__init__(handle, mode)
        self._weather = weather

    def readinto(self, buffer: Any, /) -> int | None:
        self._weather.reach("read")
        return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> bytes | None:
        self._weather.reach("read")
        return super().read(size)

    def readall(self) -> bytes | None:
        self._weather.reach("read")
        return super().readall()

    def write(self, data: Any, /) -> int | None:
        self._weather.reach("write")
        return super().write(data)

    def close(self) -> None:
        closed = self.closed
        super().close()
        if not closed:
            self._weather.reach("close")


class _System:
    """The operating system's calls, or an object store's, some of which fail."""

    def __init__(self, real: Any, weather: Weather, calls: tuple[str, ...]) -> None:
        self._real, self._weather, self._calls = real, weather, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name == "makedirs":
            return self._reaching("mkdir", found)
        return self._reaching(name, found) if name in self._calls else found

    def _reaching(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._weather.reach(name)
            return real(*arguments, **named)

        return call

    def fdopen(self, handle: int, mode: str) -> Any:
        raw = _File(handle, mode, self._weather)
        return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)


@contextmanager
def failing(weather: Weather) -> Iterator[None]:
    """Have the storages' calls go through the weather."""
    real: list[tuple[Any, str, Any]] = [
        (directory, "os", _System(os, weather, CALLS)),
        (directory, "shutil", _System(shutil, weather, CALLS)),
        (object_store, "obstore", _System(obstore, weather, REQUESTS)),
        (manager, "RETRY_SECONDS", 0.001),
        (manager, "MOST_RETRY_SECONDS", 0.002),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in real]
    for module, name, value in real:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Life:
    """One worker of one lineage."""

    def __init__(self, where: Storage, job: str, number: int, verify: bool) -> None:
        model = torch.nn.Linear(3, 2)
        self.state = ReplicatedState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        control = SimpleNamespace(
            epoch=(number << 32) + 1, may_commit=True, connected=True, note=lambda _: None,
            doing=lambda *_: nullcontext(),
        )  # fmt: skip
        policy = Policy(every_seconds=0, keep=KEEP, verify=verify)
        self.checkpoints = Checkpoints(where, policy, cast(CoordinatorClient, control), origin=Origin(job=job))

    def load(self) -> bool:
        found = self.checkpoints.wait_for(lambda: self.checkpoints.load(self.state), lambda: None)
        step = self.state.counters.step
        if found and not bool((next(self.state.model.parameters()) == step).all()):
            raise Violation(f"step {step} was loaded with other weights")
        return found

    @torch.no_grad()
    def save(self, tries: int) -> bool:
        """Take a step, and save it; whether that was possible."""
        self.state.counters.step += 1
        self.state.counters.version += 1
        for parameter in self.state.model.parameters():
            parameter.fill_(self.state.counters.step)
        return self._try(lambda: self.checkpoints.save(self.state), tries)

    def publish(self, tries: int) -> bool:
        return self._try(lambda: self.checkpoints.export(self.state), tries)

    def _try(self, what: Callable[[], None], tries: int) -> bool:
        for _ in range(tries):
            try:
                what()
                return True
            except (OSError, Superseded) as error:
                self.checkpoints.failed(error)
        return False


class Schedule:
    """The lives of one job's lineages."""

    def __init__(self, seed: int, root: Path, weather: Weather) -> None:
        self._seed = seed
        self._chance = random.Random(seed)
        self._bucket = seed % 2 == 1
        self._root = root / "default.job"
        self._root.mkdir()
        self._weather = weather
        self._job, self._number = "uid-0", 0
        self._done: list[str] = []

    def run(self) -> None:
        """
        Raises:
            Violation: with the seed, and all that was done.
        """
        try:
            combinations = self._combinations()
            life = self._next()
            for _ in range(TURNS):
                life = self._turn(life, *next(combinations))
            self._weather.clear()
            if not life.save(tries=1):
                raise Violation(f"storage answers, and nothing can be saved: {life.checkpoints.error}")
        except (Violation, InvalidJob) as violation:
            told = "\n".join(self._done)
            raise Violation(f"seed {self._seed}: {violation}\n{told}\nthere: {os.listdir(self._root)}") from violation

    def _combinations(self) -> Iterator[tuple[str, str, Exception]]:
        """Phase, call and error: all of them in turn, over the schedules."""
        calls: tuple[str, ...] = REQUESTS if self._bucket else CALLS
        errors: list[Exception] = list(REFUSALS) if self._bucket else [OSError(n, os.strerror(n)) for n in ERRNOS]
        every = list(itertools.product(PHASES, calls, errors))
        at = self._seed // 2 * TURNS
        return (every[(at + n) * 37 % len(every)] for n in itertools.count())

    def _turn(self, life: Life, phase: str, call: str, error: Exception) -> Life:
        after, times = self._chance.choice([0, 0, 1, 3, 8]), self._chance.choice([1, 1, 2, 5])
        self._done.append(f"{phase}: {call} fails with {error!r:.60} after {after}, {times} times")
        before, good = self._saved(), self._good()
        self._weather.turn(phase, call, error, after, times)
        if phase == "load":
            if self._chance.random() < 0.3:
                self._spoil(before)
                good = self._good()
            self._weather.phase = phase
            life = self._next()
            self._load(life, good)
        elif phase == "claim":
            life = self._next(new_job=self._chance.random() < 0.3)
            self._load(life, good)
            life.save(tries=self._chance.choice([1, 3, 8]))
        elif phase == "publish":
            life.publish(tries=self._chance.choice([1, 3, 8]))
        else:
            life = self._next(verify=phase == "verify") if self._chance.random() < 0.2 else life
            if life.state.counters.step == 0:
                self._load(life, good)
            life.save(tries=self._chance.choice([1, 3, 8]))
        self._weather.clear()
        self._look(good)
        return life

    def _load(self, life: Life, good: list[Saved]) -> None:
        found = life.load()
        step = life.state.counters.step
        self._done.append(f"  loaded {found}, step {step}")
        if good and (not found or step < good[0].step):
            raise Violation(f"training goes on at step {step}, and {good[0].name} is good")

    def _next(self, new_job: bool = False, verify: bool = False) -> Life:
        self._number += 1
        if new_job:  # deleted and applied again
            self._job, self._number = f"uid-{len(self._done)}", 1
        self._done.append(f"  coordinator {self._number} of {self._job}")
        return Life(self._storage(), self._job, self._number, verify)

    def _storage(self) -> Storage:
        return ObjectStore(f"file://{self._root}") if self._bucket else Directory(self._root)

    def _saved(self) -> list[Saved]:
        with self._calm():
            return self._storage().saved()

    def _good(self) -> list[Saved]:
        """Checkpoints that are as they were written, the newest first."""
        found = []
        with self._calm():
            for one in self._storage().saved():
                try:
                    file_format.verify(self._storage(), one.name)
                    found.append(one)
                except file_format.Corrupt:
                    pass
        return found

    @contextmanager
    def _calm(self) -> Iterator[None]:
        left, self._weather.left = self._weather.left, 0
        try:
            yield
        finally:
            self._weather.left = left

    def _spoil(self, saved: list[Saved]) -> None:
        """Change a bit of the newest checkpoint, if an older one is left to go on from."""
        if len(good := self._good()) < 2:
            return
        path = self._root / good[0].name / "tensors-0.safetensors"
        data = bytearray(path.read_bytes())
        data[self._chance.randrange(len(data))] ^= 1
        path.write_bytes(data)
        self._done.append(f"  {good[0].name} is spoiled")

    def _look(self, before: list[Saved]) -> None:
        """Nothing good was lost, and what is published is whole."""
        now = self._good()
        names = [one.name for one in now]
        for rank, lost in enumerate(one for one in before if one.name not in names):
            newer = [one for one in now if (one.epoch >> 32, one.step) > (lost.epoch >> 32, lost.step)]
            if len(newer) < KEEP:
                raise Violation(f"{lost.name} is gone ({rank}), and of newer ones there are {[n.name for n in newer]}")
        beside = self._root / (MODEL_FILE + DIGEST_SUFFIX)
        if beside.exists():
            found = hashlib.sha256((self._root / MODEL_FILE).read_bytes()).hexdigest()
            if beside.read_text().split()[0] != found:
                raise Violation(f"{MODEL_FILE} has {found}, and {beside.read_text()} is beside it")


def run(schedules: range) -> dict[str, Any]:
    """All of the schedules.

    Raises:
        Violation: something good was lost.
    """
    began, weather = time.monotonic(), Weather()
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with failing(weather):
        for seed in schedules:
            with tempfile.TemporaryDirectory(dir=fast) as scratch:
                Schedule(seed, Path(scratch), weather).run()
    return {
        "schedules": len(schedules),
        "turns": len(schedules) * TURNS,
        "faults": sum(weather.hits.values()),
        "combinations": len(weather.hits),
        "calls": sorted({call for call, _, _ in weather.hits}),
        "errors": sorted({error for _, error, _ in weather.hits}),
        "violations": 0,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    try:
        print(json.dumps(run(range(arguments.first, arguments.first + arguments.schedules))))
    except Violation as violation:
        sys.exit(str(violation))


if __name__ == "__main__":
    main()
