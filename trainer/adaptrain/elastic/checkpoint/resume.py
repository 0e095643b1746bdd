"""Which checkpoint training goes on from, and which it refuses.

What can't be read now is waited for, by the caller. A checkpoint is passed over only if all of it was read, twice, and
it is not what was written; where none is good, the job ends rather than begin anew.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import torch

from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.checkpoint.failures import Foreign
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state import history
from adaptrain.elastic.state.optimizers import Unsupported
from adaptrain.elastic.state.replicated import Counters, ReplicatedState
from adaptrain.elastic.storage.directory import Saved, Storage
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)
T = TypeVar("T")
Loaded = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors and counters."""
Found = tuple[Saved, dict[str, torch.Tensor], dict[str, Any]]


class Reader:
    """Reads the checkpoints of one job; all processes of a worker call the same.

    Args:
        as_one: does something on each process, and fails on all if it fails on one.
        note: tells people something.
    """

    def __init__(
        self,
        storage: Storage,
        origin: Origin,
        key: bytes | None,
        replica: Replica,
        as_one: Callable[[Callable[[], Any]], Any],
        note: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._origin = origin
        self._key = key
        self._replica = replica
        self._as_one = as_one
        self._note = note

    def readable(self, state: ReplicatedState) -> Iterator[Found]:
        """Each checkpoint of this training that is as it was written, the newest first.

        Raises:
            InvalidJob: the newest good one is of another training or model, or none of them is good.
            OSError: storage doesn't say what there is, or one can't be read now.
        """
        found = self._as_one(lambda: self._storage.saved() if self._leads else [])
        passed_over, good = "", False
        for saved in [Saved(**told) for told in self._replica.broadcast_object([asdict(one) for one in found])]:
            if not saved.complete and not self._storage.renames:
                continue  # its writer was lost, or writes it still
            path = f"{self._storage}/{saved.name}"
            try:
                tensors, counters = self._as_one(partial(self._read, self._storage, saved, state))
            except file_format.Corrupt as error:
                passed_over = passed_over or f"{path}: {error}"
                if self._leads:
                    log.warning("checkpoint %s can't be used (%s); an older one is tried", path, error)
                    self._note(f"checkpoint {saved.name} can't be used: {error}")
                continue
            except file_format.Mismatch as error:
                raise InvalidJob(
                    f"checkpoint {path} is of another model: {error}; bring back the image and the model that wrote it,"
                    " or give this job an empty volume or another checkpoint.uri"
                ) from error
            except Foreign as error:
                if self._origin.resume_from is not None:
                    break
                raise InvalidJob(
                    f"checkpoint {path} is of another training: {error}; give this job another name, an empty volume or"
                    f" another checkpoint.uri, or go on from that checkpoint with checkpoint.resumeFrom: {saved.name}"
                ) from error
            good = True
            yield saved, tensors, counters
        if passed_over and not good:
            raise InvalidJob(
                f"no checkpoint is as it was written ({passed_over}): bring one back from a backup, or, to begin anew,"
                " give this job an empty volume or another checkpoint.uri"
            )

    def named(self, state: ReplicatedState) -> Found | None:
        """The checkpoint that the job's manifest names to begin with, if it names one.

        Raises:
            InvalidJob: there is no such one, or it can't be used.
            OSError: it can't be read now.
        """
        if self._origin.resume_from is None:
            return None
        storage, name = self._wanted()
        saved = Saved.of(name, True, time.time())
        assert saved is not None, "the API checks the name"
        try:
            tensors, counters = self._as_one(lambda: self._read(storage, saved, state, named=True))
        except (file_format.Corrupt, file_format.Mismatch) as error:
            raise InvalidJob(f"checkpoint.resumeFrom: {storage}/{name} can't be used: {error}") from error
        # What was best, and why training ended, was by another manifest's measure.
        return saved, tensors, _unfinished(counters) | {"best": {}, "best_step": 0, "best_epoch": counters["epoch"]}

    def rows(self, saved: Saved, named: bool) -> str | None:
        """The history of a checkpoint that was found; None: there is none, or not as it was written, and it begins
        anew.

        Args:
            named: whether it is the one that the job's manifest names.

        Raises:
            OSError: it can't be read now.
        """
        if not self._leads:
            return None
        storage = self._wanted()[0] if named else self._storage
        try:
            return file_format.rows_of(storage, saved.name, self._key)
        except file_format.Corrupt as error:
            log.warning("%s of checkpoint %s can't be used (%s) and begins anew", history.FILE, saved.name, error)
            self._note(f"{history.FILE} of checkpoint {saved.name} can't be used and begins anew: {error}")
            return None

    def _wanted(self) -> tuple[Storage, str]:
        """The storage and the name of the checkpoint that the job's manifest names."""
        folder, _, name = (self._origin.resume_from or "").rpartition("/")
        return self._storage.beside(folder) if folder else self._storage, name

    @property
    def _leads(self) -> bool:
        return self._replica.rank == 0

    def _read(self, storage: Storage, saved: Saved, state: ReplicatedState, named: bool = False) -> Loaded:
        """Tensors and counters of a checkpoint.

        Raises:
            Foreign: it is of another training, and not the one to begin with.
            Corrupt: it was read twice, and isn't what was written.
        """

        def room(counters: dict[str, Any]) -> dict[str, torch.Tensor]:
            try:
                return state.parts(state.room(counters, "cpu"))
            except Unsupported as error:
                raise file_format.Mismatch(str(error)) from error

        try:
            return self._look(storage, saved, room, named)
        except file_format.Corrupt:
            if not named and all(saved.name != one.name for one in storage.saved()):
                raise FileNotFoundError(f"{saved.name} was removed while it was read") from None
            return self._look(storage, saved, room, named, cached=False)

    def _look(
        self,
        storage: Storage,
        saved: Saved,
        room: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
        named: bool,
        cached: bool = True,
    ) -> Loaded:
        of = file_format.manifest_of(storage, saved.name, self._key, cached)["of"]
        if not named and (difference := self._origin.differs(of)) is not None:
            raise Foreign(difference)
        tensors, counters = file_format.read(storage, saved.name, room, self._key, cached)
        _check(counters)
        if counters["step"] != saved.step:
            raise file_format.Corrupt(f"it is of step {counters['step']}: it was renamed")
        return tensors, counters if of.get("budget", []) == self._origin.budget else _unfinished(counters)


def _check(counters: dict[str, Any]) -> None:
    """Make sure that counters can be counters."""
    for name, usual in asdict(Counters()).items():
        value = counters.setdefault(name, usual)
        kinds = (int, float) if type(usual) is float else (type(usual),)
        if type(value) not in kinds or (type(value) is int and value < -1):
            raise file_format.Corrupt(f"{file_format.COUNTERS} can't be read: {name} is {value!r:.50}")
    for name in ("best", "metrics"):
        if not all(type(value) in (int, float) for value in counters[name].values()):
            raise file_format.Corrupt(f"{file_format.COUNTERS} can't be read: {name} holds what is no number")


def _unfinished(counters: dict[str, Any]) -> dict[str, Any]:
    """The counters of a training that may go on: whether it is at its end is to be found anew."""
    metrics = {name: value for name, value in counters["metrics"].items() if not name.startswith("test/")}
    return counters | {"stopped": "", "evaluated_step": -1, "metrics": metrics}
