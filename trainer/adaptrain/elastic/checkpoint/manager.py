"""Checkpoints: saved aside by a thread, and only by the newest lineage.

A job's storage holds a folder for each checkpoint (see ``archive`` and ``storage``); the claims of its lineages (see
``lineage``); the ``metrics.jsonl`` of the newest checkpoint (see ``history``); and at the end ``model.safetensors``
with its digest beside it. ``resume`` reads them, ``retention`` says which ones stay.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.checkpoint.failures import TOLD, raise_first, told
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.checkpoint.resume import Reader
from adaptrain.elastic.checkpoint.retention import Retention
from adaptrain.elastic.membership.client import GenerationState
from adaptrain.elastic.membership.state_machine import COUNT_BITS, coordinator_of
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state import history
from adaptrain.elastic.state.replicated import HISTORY, Counters, ReplicatedState
from adaptrain.elastic.storage import lineage
from adaptrain.elastic.storage.directory import Storage, Unavailable
from adaptrain.elastic.storage.lineage import Claim, Held, Superseded
from adaptrain.elastic.storage.weights import publish
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 0.5
MOST_RETRY_SECONDS = 10.0
"""While storage can't be read: twice as long each time."""
HELD_SECONDS = 300.0
"""A job that finds its folder held by another lineage for so long ends: it would train for nothing."""
SECTION_SECONDS = 600.0
"""A section that reads or writes storage may take this long before its worker is taken for hung."""
ANSWER_SECONDS = 30.0
"""At the end of training storage is waited for so long at a time, and then the job's condition tells of it."""
SLOW_SECONDS = 5.0
"""A checkpoint that takes longer, and longer than three intervals, is told of."""
MODEL_FILE = "model.safetensors"
"""Best weights, beside the checkpoints."""


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
    part of the state; the first one decides, and commits.

    Args:
        origin: what the checkpoints are of.
        key: seals them.
    """

    def __init__(
        self,
        storage: Storage,
        policy: Policy,
        control: GenerationState,
        replica: Replica | None = None,
        origin: Origin | None = None,
        key: bytes | None = None,
    ) -> None:
        self._replica = replica or Replica()
        self._leads = self._replica.rank == 0
        self._storage = storage
        self._policy = policy
        self._control = control
        self._thread: threading.Thread | None = None
        self._due = time.monotonic() + policy.every_seconds
        self._began = 0.0
        """When the newest thread that saves was started."""
        self._origin = origin or Origin()
        self._key = key
        self._claimed: Claim | None = None
        self._held_since: float | None = None
        self._reader = Reader(storage, self._origin, key, self._replica, self._as_one, self._note)
        self._retention = Retention(storage, self._origin, key, policy.keep, policy.keep_best)
        self._best_step = 0
        """Step of the best metric when the last checkpoint was begun."""
        self._rows: str | None = None
        """The history of the checkpoint that was loaded, until it is published."""
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
        if self._leads and not self._has_claimed and not self._busy:
            self._aside(self._begin_lineage)

    def maybe_save(self, state: ReplicatedState) -> None:
        """Begin to save in the background when it is due.

        Raises:
            InvalidJob: another lineage has held the folder for too long.
        """
        self.give_up()
        due, busy = self._replica.any_rank(self._leads and self._is_due(state.counters), self._busy)
        if busy:
            self._tell_slow()
        if busy or not due:
            return
        self._due = time.monotonic() + self._policy.every_seconds
        self._best_step = state.counters.best_step
        capture, epoch = state.begin_snapshot(), self._control.epoch
        self._aside(lambda: self._save(state, capture.copy, epoch))

    def _is_due(self, counters: Counters) -> bool:
        """Whether it is time to save, and this group may commit."""
        improved = self._policy.keep_best and counters.best_step > self._best_step
        return (improved or time.monotonic() >= self._due) and self._control.may_commit

    def save(self, state: ReplicatedState, seconds: float | None = None) -> None:
        """Save now, and wait for it.

        Args:
            seconds: how long at most; None: as long as it takes.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused, or is still at it. It may yet be saved.
        """
        epoch = self._control.epoch
        self._as_one(lambda: self._within(seconds, lambda: self._save(state, state.capture, epoch)))

    def failed(self, error: Exception, what: str = "a checkpoint could not be saved") -> None:
        """Keep why there is no newer checkpoint, for the job's condition: which the first process tells."""
        if not self._leads:
            return
        if not isinstance(error, Held):
            self._held_since = None
        elif self._held_since is None:
            self._held_since = time.monotonic()
        why = (
            str(error)
            if isinstance(error, Unavailable | Held)
            else f"{type(error).__name__}: {file_format.reason(error)}"
        )
        self.error = f"{what}: {why}"
        log.warning("%s", self.error)

    def give_up(self) -> None:
        """End a training that nothing is kept of.

        Raises:
            InvalidJob: another lineage has held the folder for too long.
        """
        since = self._held_since if self._leads else None
        if since is not None and time.monotonic() - since > HELD_SECONDS:
            raise InvalidJob(f"nothing could be saved in {self._storage} for {HELD_SECONDS:.0f} s; {self.error}")

    def wait_for(self, look: Callable[[], T], check: Callable[[], None]) -> T:
        """What ``look`` finds in storage, once that tells what there is: to go on as if it held nothing would lose it.

        Args:
            check: is called after each attempt that failed, and may raise.
        """
        began, pause = time.strftime("%H:%M:%S UTC", time.gmtime()), RETRY_SECONDS
        while True:
            with self._control.doing("section", SECTION_SECONDS):
                try:
                    found = look()
                except OSError as error:
                    self.failed(error, f"training waits for its checkpoints since {began}")
                    if self._leads and pause == RETRY_SECONDS:
                        self._control.note(self.error)
                    check()
                    time.sleep(pause)
                    pause = min(MOST_RETRY_SECONDS, 2 * pause)
                else:
                    if pause > RETRY_SECONDS:
                        self.error = ""
                    return found

    def load(self, state: ReplicatedState) -> bool:
        """Restore the newest checkpoint that is as it was written; whether there was one.

        Raises:
            InvalidJob: it is of another training, model or optimizer, or none is as it was written.
            OSError: storage doesn't say what there is.
        """
        found, named = next(self._reader.readable(state), None), False
        if found is None:
            found, named = self._reader.named(state), True
        if found is None:
            return False
        saved, tensors, counters = found
        self._rows = self._as_one(lambda: self._reader.rows(saved, named))
        counters["more"][HISTORY] = self._rows
        state.restore({**tensors, "counters": counters})
        self.newest_step, self.newest_time = state.counters.step, saved.time
        self._best_step = state.counters.best_step
        if self._leads:
            log.info("resumed from %s/%s", self._storage, saved.name)
            self._control.note(f"resumed from {saved.name}")
        if self._origin.resume_from is None:
            self._retention.good.add(saved.name)
        return True

    def sound(self, state: ReplicatedState) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and counters of the newest checkpoint that is as it was written and has only finite weights, if any.

        Raises:
            OSError: storage doesn't say what there is.
        """
        parameters = {f"model.{name}" for name, _ in state.model.named_parameters()}
        if self._thread is not None:
            self._thread.join()
        for saved, tensors, counters in self._reader.readable(state):
            if self._replica.all_ranks(
                all(bool(t.isfinite().all()) for name, t in tensors.items() if name in parameters)
            ):
                return tensors, counters
            log.warning("checkpoint %s has weights that are not finite; an older one is tried", saved.name)
        return None

    def export(self, state: ReplicatedState, seconds: float | None = None) -> None:
        """Write the best weights as safetensors.

        Args:
            seconds: how long at most; None: as long as it takes.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused, or is still at it.
        """
        best, c, epoch = state.gather_best(), state.counters, self._control.epoch
        self._as_one(lambda: self._within(seconds, lambda: self._export(best, c, epoch)) if self._leads else None)

    def _export(self, best: dict[str, torch.Tensor], c: Counters, epoch: int) -> None:
        self._check(epoch)
        metadata = {"step": str(c.best_step), "metrics": json.dumps(c.best), "format": "pt"}
        publish(self._storage, MODEL_FILE, best, metadata, lambda: self._check(epoch))

    def _as_one(self, act: Callable[[], T]) -> T:
        """What a process does itself; what keeps one of them from it keeps them all."""
        done: T | None = None
        error: Exception | None = None
        try:
            done = act()
        except TOLD as failure:
            error = failure
        # However long it takes the others: it is their beats that say so.
        with self._control.doing("voting"):
            said = self._replica.all_gather_object(told(error))
        raise_first(said, error)
        return cast(T, done)

    def _within(self, seconds: float | None, what: Callable[[], None]) -> None:
        """Do something in a thread of its own, once the one before has ended, and wait for it."""
        until = None if seconds is None else time.monotonic() + seconds
        failed: list[Exception] = []

        def run() -> None:
            try:
                what()
            except Exception as error:
                failed.append(error)

        self._join(until)
        self._start(run)
        self._join(until)
        if failed:
            raise failed[0]

    def _join(self, until: float | None) -> None:
        if self._thread is None:
            return
        self._thread.join(None if until is None else max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            raise Unavailable(self._slow())

    def _start(self, run: Callable[[], None]) -> None:
        self._began = time.monotonic()
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def _slow(self) -> str:
        return f"{self._storage} has not answered for {time.monotonic() - self._began:.0f} s"

    def _tell_slow(self) -> None:
        if self._leads and time.monotonic() - self._began > max(SLOW_SECONDS, 3 * self._policy.every_seconds):
            self.error = f"the newest checkpoint is not saved yet: {self._slow()}"

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _aside(self, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except Held as error:
                self.failed(error)
            except Superseded as reason:
                log.warning("checkpoint dropped: %s", reason)
            except Exception as error:  # training goes on: the condition CheckpointAvailable tells why it is old
                self.failed(error)

        self._start(run)

    def _save(self, state: ReplicatedState, capture: Callable[[], dict[str, Any]], epoch: int) -> None:
        captured: dict[str, Any] = {}
        rows = name = folder = ""
        error: Exception | None = None
        try:
            captured = capture()
            counters = captured.pop("counters")
            rows = counters["more"].pop(HISTORY)
            name, folder = self._begin(counters["step"], epoch) if self._leads else ("", "")
        except TOLD as failure:
            error = failure
        except Exception as failure:  # who says nothing lets its other ranks wait for ever
            error = OSError(f"{type(failure).__name__}: {failure}")
        said = self._replica.all_gather_object({"folder": folder, **told(error)}, savers=True)
        try:
            raise_first(said, error)
        except TOLD:
            self._clean_up()
            raise
        if not (folder := said[0]["folder"]):
            self.newest_step, self.error = counters["step"], ""
            self._publish_rows(rows, epoch)
            return
        try:
            of = self._origin.told()
            manifest = file_format.write(
                self._storage, folder, state.parts(captured), counters, self._replica.savers, of, self._key, rows
            )
            if not self._leads:
                return
            committed = self._storage.commit(folder, name, manifest, lambda: self._check(epoch))
            self._unfinished.remove(folder)
        finally:
            self._clean_up()
        if self._policy.verify:
            self._verify(committed)
        self._retention.good.add(committed)
        self.newest_step, self.newest_time, self.error, self._held_since = counters["step"], time.time(), "", None
        self._publish_rows(rows, epoch)
        self._tidy(counters["best_step"], epoch)

    def _begin(self, step: int, epoch: int) -> tuple[str, str]:
        """The name of a checkpoint and a new folder for it; no folder if it is there already."""
        stored = self._as_stored(epoch)
        name = f"step-{step:010d}.{stored}"
        if any((s.step, s.epoch, s.complete) == (step, stored, True) for s in self._storage.saved()):
            return name, ""
        folder = self._storage.begin(name)
        self._unfinished.append(folder)
        return name, folder

    def _clean_up(self) -> None:
        """Remove what was begun and not completed."""
        for folder in list(self._unfinished):
            try:
                self._storage.remove(folder)
                self._unfinished.remove(folder)
            except OSError:  # the next time, then
                return

    def _verify(self, name: str) -> None:
        if (error := self._retention.proved_bad(name)) is not None:
            self._control.note(f"checkpoint {name} is not what was written, and is removed: {error}")
            self._storage.remove(name)
            raise Unavailable(f"{self._storage}: {name} was not what had been written ({error}): check the storage")

    def _tidy(self, best_step: int, epoch: int) -> None:
        """Remove what is not to be kept. The checkpoint is saved, whatever becomes of this."""
        try:
            self._retention.apply(best_step, lambda: self._check(epoch))
            self._storage.sweep(self._as_stored(epoch))
        except OSError as error:
            self.failed(error, "older checkpoints could not be looked through, and are all kept")
        except Superseded:
            return

    def _publish_rows(self, rows: str, epoch: int) -> None:
        """Write the newest checkpoint's history beside the checkpoints, which are saved whatever becomes of this."""
        self._rows = None
        if not (rows and self._leads):
            return
        try:
            with self._storage.replace(history.FILE, lambda: self._check(epoch)) as path:
                path.write_text(rows)
        except OSError as error:
            self.failed(error, f"{history.FILE} could not be written")
        except Superseded:
            return

    def _begin_lineage(self) -> None:
        self._claim()
        # Its writer may have been lost before it was published, or a checkpoint that is no longer good was newer.
        self._publish_rows(self._rows or "", self._control.epoch)

    @property
    def _has_claimed(self) -> bool:
        return self._claimed is not None and self._claimed.number == coordinator_of(self._control.epoch)

    def _claim(self) -> Claim:
        if self._claimed is None or not self._has_claimed:
            self._claimed = lineage.claim(self._storage, self._origin.job, coordinator_of(self._control.epoch))
        return self._claimed

    def _as_stored(self, epoch: int) -> int:
        """An epoch as storage knows it: its lineage's term, and its count."""
        return self._claim().term << COUNT_BITS | epoch & ((1 << COUNT_BITS) - 1)

    def _note(self, message: str) -> None:
        self._control.note(message)

    def _check(self, epoch: int) -> None:
        """Only a group whose coordinator is the newest, and within reach, commits."""
        if not self._control.connected or coordinator_of(self._control.epoch) != coordinator_of(epoch):
            raise Superseded("the coordinator is away, or another one has taken over")
        lineage.check(self._storage, self._claim())
