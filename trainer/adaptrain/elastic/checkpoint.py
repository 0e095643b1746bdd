"""Checkpoints: saved aside by a thread, and only by the newest lineage.

A job's storage holds a folder for each checkpoint (see ``archive`` and ``storage``); ``lineage``, the highest
coordinator number that formed a group here; and at the end ``model.safetensors``.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import save_file

from adaptrain.elastic import archive
from adaptrain.elastic.control import Epochs
from adaptrain.elastic.mates import Mates
from adaptrain.elastic.membership import coordinator_of
from adaptrain.elastic.state import Counters, ReplicatedState
from adaptrain.elastic.storage import Saved, Storage, Unavailable
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 0.5
SECTION_SECONDS = 600.0
"""A section that reads or writes storage may take this long before its worker is taken for hung."""
MODEL_FILE = "model.safetensors"
"""Best weights, beside the checkpoints."""
LINEAGE_FILE = "lineage"


class Superseded(Exception):
    """Another lineage is newer: this group may leave nothing behind."""


@dataclass(frozen=True)
class Policy:
    """When to save, and what to keep."""

    every_seconds: float = 60.0
    keep: int = 3
    keep_best: bool = False
    """Keep, beside the newest ones, the first that has the best metric; save one when the metric improves."""
    verify: bool = False
    """Read each one again when it is saved."""


class Checkpoints:
    """The checkpoints of one job. A worker's processes call the same in the same order: each saves and loads its own
    part of the state; the first one decides, and commits."""

    def __init__(self, storage: Storage, policy: Policy, control: Epochs, mates: Mates | None = None) -> None:
        self._mates = mates or Mates()
        self._leads = self._mates.rank == 0
        self._storage = storage
        self._policy = policy
        self._control = control
        self._thread: threading.Thread | None = None
        self._due = time.monotonic() + policy.every_seconds
        self._claimed = 0
        self._best_step = 0
        """Step of the best metric when the last checkpoint was begun."""
        self._unfinished: list[str] = []
        """Folders of this process that could neither be completed nor removed."""
        self.newest_step: int | None = None
        self.newest_time: float | None = None
        self.error = ""
        """Why there is no newer checkpoint; empty: all is well."""

    def claim(self) -> None:
        """Note aside that this lineage began, so that no older one commits here any more.

        Storage that refuses, or doesn't answer, doesn't stop training: nothing is saved before the note is made.
        """
        if self._leads and coordinator_of(self._control.epoch) != self._claimed and not self._busy:
            self._aside(self._claim)

    def maybe_save(self, state: ReplicatedState) -> None:
        """Begin to save in the background when it is due."""
        due, busy = self._mates.any(self._leads and self._is_due(state.counters), self._busy)
        if busy or not due:
            return
        self._due = time.monotonic() + self._policy.every_seconds
        self._best_step = state.counters.best_step
        capture, epoch = state.begin_capture(), self._control.epoch
        self._aside(lambda: self._save(state, capture.copy, epoch))

    def _is_due(self, counters: Counters) -> bool:
        """Whether it is time to save, and this group may commit."""
        improved = self._policy.keep_best and counters.best_step > self._best_step
        return (improved or time.monotonic() >= self._due) and self._control.may_commit

    def save(self, state: ReplicatedState) -> None:
        """Save now, and wait for it.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused.
        """
        if self._thread is not None:
            self._thread.join()
        self._as_one(lambda: self._save(state, state.capture, self._control.epoch))

    def failed(self, error: Exception, what: str = "a checkpoint could not be saved") -> None:
        """Keep why there is no newer checkpoint, for the job's condition: which the first process tells."""
        if not self._leads:
            return
        why = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {archive.reason(error)}"
        self.error = f"{what}: {why}"
        log.warning("%s", self.error)

    def wait_for(self, look: Callable[[], T], check: Callable[[], None]) -> T:
        """What ``look`` finds in storage, once that tells what there is: to go on as if it held nothing would lose it.

        Args:
            check: is called after each attempt that failed, and may raise.
        """
        while True:
            with self._control.doing("section", SECTION_SECONDS):
                try:
                    return look()
                except OSError as error:
                    self.failed(error, "training waits for its checkpoints")
                    check()
                    time.sleep(RETRY_SECONDS)

    def load(self, state: ReplicatedState) -> bool:
        """Restore the newest checkpoint that is as it was written; whether there was one.

        Raises:
            InvalidJob: it is of another model or optimizer.
            OSError: storage doesn't say what there is.
        """
        for saved, tensors, counters in self._readable(state):
            state.restore({**tensors, "counters": counters})
            self.newest_step, self.newest_time = state.counters.step, saved.time
            self._best_step = state.counters.best_step
            if self._leads:
                log.info("resumed from %s/%s", self._storage, saved.name)
                self._control.note(f"resumed from {saved.name}")
            return True
        return False

    def sound(self, state: ReplicatedState) -> tuple[int, dict[str, torch.Tensor]] | None:
        """Step and tensors of the newest checkpoint that is as it was written and has only finite weights, if any.

        Raises:
            OSError: storage doesn't say what there is.
        """
        parameters = {f"model.{name}" for name, _ in state.model.named_parameters()}
        if self._thread is not None:
            self._thread.join()
        for saved, tensors, counters in self._readable(state):
            if self._mates.agree(all(bool(t.isfinite().all()) for name, t in tensors.items() if name in parameters)):
                return counters["step"], tensors
            log.warning("checkpoint %s has weights that are not finite; an older one is tried", saved.name)
        return None

    def _readable(self, state: ReplicatedState) -> Iterator[tuple[Saved, dict[str, torch.Tensor], dict[str, Any]]]:
        """Tensors and counters of each checkpoint that is as it was written, the newest first."""
        found = self._as_one(lambda: self._storage.saved() if self._leads else [])
        for saved in [Saved(**told) for told in self._mates.tell([asdict(one) for one in found])]:
            try:
                tensors, counters = self._as_one(lambda saved=saved: self._read(saved, state))  # type: ignore[misc]
            except Unavailable:
                raise
            except (archive.Corrupt, OSError) as error:
                if self._leads:
                    path = f"{self._storage}/{saved.name}"
                    log.warning("checkpoint %s can't be used (%s); an older one is tried", path, error)
                    self._control.note(f"checkpoint {saved.name} can't be used: {error}")
                continue
            except archive.Mismatch as error:
                raise InvalidJob(
                    f"checkpoint {self._storage}/{saved.name} is of another model: {error}; bring back the image and"
                    " the model that wrote it, or give this job an empty volume or another checkpoint.uri"
                ) from error
            yield saved, tensors, counters

    def _read(self, saved: Saved, state: ReplicatedState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        room = {name: torch.empty_like(t, device="cpu") for name, t in state.tensors().items()}
        tensors, counters = archive.read(self._storage, saved.name, state.parts(room))
        if counters["step"] != saved.step:
            raise archive.Corrupt(f"it is of step {counters['step']}: it was renamed")
        return tensors, counters

    def export(self, state: ReplicatedState) -> None:
        """Write the best weights as safetensors.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused.
        """
        best = state.gather_best()
        self._as_one(lambda: self._export(best, state.counters, self._control.epoch) if self._leads else None)

    def _export(self, best: dict[str, torch.Tensor], c: Counters, epoch: int) -> None:
        self._check(epoch)
        metadata = {"step": str(c.best_step), "metrics": json.dumps(c.best), "format": "pt"}
        with self._storage.replace(MODEL_FILE, lambda: self._check(epoch)) as path:
            save_file({k: t.contiguous() for k, t in best.items()}, path, metadata)

    def _as_one(self, act: Callable[[], T]) -> T:
        """What a process does itself; what keeps one of them from it keeps them all."""
        done: T | None = None
        error: Exception | None = None
        try:
            done = act()
        except (OSError, Superseded, archive.Corrupt, archive.Mismatch) as failure:
            error = failure
        # However long it takes the others: it is their beats that say so.
        with self._control.doing("voting"):
            first = next(filter(None, self._mates.hear(error)), None)
        if first is not None:
            raise first
        return cast(T, done)

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _aside(self, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except Superseded as reason:
                log.warning("checkpoint dropped: %s", reason)
            except Exception as error:  # training goes on: the condition CheckpointAvailable tells why it is old
                self.failed(error)

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def _save(self, state: ReplicatedState, capture: Callable[[], dict[str, Any]], epoch: int) -> None:
        captured: dict[str, Any] = {}
        name = folder = ""
        error: Exception | None = None
        try:
            captured = capture()
            counters = captured.pop("counters")
            name = f"step-{counters['step']:010d}.{epoch}"
            folder = self._begin(name) if self._leads else ""
        except (OSError, Superseded) as failure:
            error = failure
        except Exception as failure:  # who says nothing lets its mates wait for ever
            error = OSError(f"{type(failure).__name__}: {failure}")
        said = self._mates.hear((folder, error), savers=True)
        if first := next(filter(None, [error for _, error in said]), None):
            self._clean_up()
            raise first
        if not (folder := said[0][0]):
            return
        try:
            manifest = archive.write(self._storage, folder, state.parts(captured), counters, self._mates.savers)
            if not self._leads:
                return
            committed = self._storage.commit(folder, name, manifest, lambda: self._check(epoch))
            self._unfinished.remove(folder)
        finally:
            self._clean_up()
        if self._policy.verify:
            self._verify(committed)
        self.newest_step, self.newest_time, self.error = counters["step"], time.time(), ""
        self._retain(counters["best_step"])
        self._storage.sweep(epoch)

    def _begin(self, name: str) -> str:
        """A new folder for a checkpoint; empty if it is there already."""
        wanted = Saved.of(name, True, 0.0)
        assert wanted is not None
        if any((s.step, s.epoch, s.complete) == (wanted.step, wanted.epoch, True) for s in self._storage.saved()):
            return ""
        self._claim()
        folder = self._storage.begin(name)
        self._unfinished.append(folder)
        return folder

    def _clean_up(self) -> None:
        """Remove what was begun and not completed."""
        for folder in list(self._unfinished):
            try:
                self._storage.remove(folder)
                self._unfinished.remove(folder)
            except OSError:  # the next time, then
                return

    def _verify(self, name: str) -> None:
        try:
            archive.verify(self._storage, name)
        except archive.Corrupt as error:
            self._control.note(f"checkpoint {name} is not what was written, and is removed: {error}")
            self._storage.remove(name)
            raise Unavailable(
                f"{self._storage}: {name} was not what had been written ({error}): check the storage"
            ) from error

    def _retain(self, best_step: int) -> None:
        """Remove all but the newest ones and, if it is wanted, the first that has the best metric."""
        saved = self._storage.saved()
        has_best = [s for s in saved if s.complete and s.step >= best_step > 0]
        best = min(has_best, key=lambda s: s.step, default=None) if self._policy.keep_best else None
        kept: list[Saved] = []
        for one in saved:
            if one is not best and len(kept) >= self._policy.keep:
                self._storage.remove(one.name)
            elif one.complete:
                kept.append(one)

    def _claim(self) -> None:
        number = coordinator_of(self._control.epoch)
        if number == self._claimed:
            return
        if number > self._lineage():
            with self._storage.replace(LINEAGE_FILE, lambda: None) as path:
                path.write_text(str(number))
        self._claimed = number

    def _check(self, epoch: int) -> None:
        """Only a group whose coordinator is the newest, and within reach, commits."""
        number = coordinator_of(epoch)
        if not self._control.connected or coordinator_of(self._control.epoch) != number or self._lineage() > number:
            raise Superseded("the coordinator is away, or another one has taken over")

    def _lineage(self) -> int:
        try:
            with self._storage.open(LINEAGE_FILE) as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return 0
