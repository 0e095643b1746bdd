"""Checkpoints: written aside by a thread, renamed into place when whole, and only by the newest lineage.

Layout: ``<directory>/step-<step>.<epoch>/`` holds one checkpoint (see ``archive``); ``<directory>/lineage`` holds the
highest coordinator number that formed a group here.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adaptrain.elastic import archive
from adaptrain.elastic.control import Control
from adaptrain.elastic.membership import coordinator_of
from adaptrain.elastic.state import Capture, ReplicatedState
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)

COMMITTED = re.compile(r"step-(\d+)\.(\d+)")
SECTION_SECONDS = 600.0
"""A section that reads or writes storage may take this long before its worker is taken for hung."""
MODEL_FILE = "model.safetensors"
"""Best weights, in the checkpoint directory."""


class Superseded(Exception):
    """Another lineage is newer: this group may leave nothing behind."""


class Checkpoints:
    """The checkpoints of one job in one directory."""

    def __init__(self, directory: Path, every_seconds: float, keep: int, control: Control) -> None:
        self._directory = directory
        self._every = every_seconds
        self._keep = keep
        self._control = control
        self._thread: threading.Thread | None = None
        self._due = time.monotonic() + every_seconds
        self.newest_step: int | None = None
        self.newest_time: float | None = None
        self.error: str | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        """Note on the volume that this lineage began, so that no older one commits here any more.

        A volume that refuses doesn't stop training: nothing is saved before the note is made.
        """
        try:
            self._claim()
        except OSError as error:
            self.failed(error)

    def maybe_save(self, state: ReplicatedState) -> None:
        """Begin to save in the background when it is due and this group may commit."""
        if time.monotonic() < self._due or (self._thread is not None and self._thread.is_alive()):
            return
        if not self._control.may_commit:
            return
        self._due = time.monotonic() + self._every
        arguments = (state.begin_capture(), self._control.epoch)
        self._thread = threading.Thread(target=self._try_save, args=arguments, name="checkpoint")
        self._thread.start()

    def save(self, state: ReplicatedState) -> None:
        """Save now, and wait for it.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused.
        """
        if self._thread is not None:
            self._thread.join()
        self._save(state.capture(), self._control.epoch)

    def failed(self, error: Exception) -> None:
        """Keep why there is no newer checkpoint, for the job's condition."""
        self.error = f"{type(error).__name__}: {archive.reason(error)}"
        log.warning("the checkpoint could not be saved: %s", self.error)

    def load(self, state: ReplicatedState) -> bool:
        """Restore the newest checkpoint that is as it was written; whether there was one.

        Raises:
            InvalidJob: it is of another model or optimizer.
        """
        for path, tensors, counters in self._readable(state):
            state.restore({**tensors, "counters": counters})
            self.newest_step, self.newest_time = state.counters.step, path.stat().st_mtime
            log.info("resumed from %s", path)
            self._control.note(f"resumed from {path.name}")
            return True
        return False

    def sound(self, state: ReplicatedState) -> tuple[int, dict[str, torch.Tensor]] | None:
        """Step and tensors of the newest checkpoint that is as it was written and has only finite weights, if any."""
        parameters = {f"model.{name}" for name, _ in state.model.named_parameters()}
        with self._control.doing("section", SECTION_SECONDS):
            if self._thread is not None:
                self._thread.join()
            for path, tensors, counters in self._readable(state):
                if all(t.isfinite().all() for name, t in tensors.items() if name in parameters):
                    return counters["step"], tensors
                log.warning("checkpoint %s has weights that are not finite; an older one is tried", path)
        return None

    def _readable(self, state: ReplicatedState) -> Iterator[tuple[Path, dict[str, torch.Tensor], dict[str, Any]]]:
        """Folder, tensors and counters of each checkpoint that is as it was written, the newest first."""
        for path in self._committed():
            tensors = {name: torch.empty_like(t, device="cpu") for name, t in state.tensors().items()}
            try:
                counters = archive.read(path, tensors)
                if counters["step"] != _step_of(path):
                    raise archive.Corrupt(f"it is of step {counters['step']}: it was renamed")
            except (archive.Corrupt, OSError) as error:
                log.warning("checkpoint %s can't be used (%s); an older one is tried", path, error)
                self._control.note(f"checkpoint {path.name} can't be used: {error}")
                continue
            except archive.Mismatch as error:
                raise InvalidJob(
                    f"checkpoint {path} is of another model: {error}; bring back the image and the model that wrote it,"
                    " or give this job an empty volume"
                ) from error
            yield path, tensors, counters

    def export(self, state: ReplicatedState) -> None:
        """Write the best weights as safetensors.

        Raises:
            Superseded: another lineage is newer.
            OSError: storage refused.
        """
        epoch = self._control.epoch
        self._check(epoch)
        partial = self._directory / f".{MODEL_FILE}.{os.getpid()}"
        c = state.counters
        metadata = {"step": str(c.best_step), "metrics": json.dumps(c.best), "format": "pt"}
        save_file({k: t.contiguous() for k, t in state.best.items()}, partial, metadata)
        archive.sync(partial)
        self._check(epoch)
        partial.rename(self._directory / MODEL_FILE)
        archive.sync(self._directory)

    def _try_save(self, capture: Capture, epoch: int) -> None:
        try:
            self._save(capture.copy(), epoch)
        except Superseded as reason:
            log.warning("checkpoint dropped: %s", reason)
        except Exception as error:  # training goes on: the condition CheckpointAvailable tells why it is old
            self.failed(error)

    def _save(self, captured: dict[str, Any], epoch: int) -> None:
        counters = captured["counters"]
        final = self._directory / f"step-{counters['step']:010d}.{epoch}"
        if final.exists():
            return
        partial = self._directory / f".partial-{epoch}-{counters['step']}-{os.getpid()}"
        try:
            self._claim()
            archive.write(partial, {name: t for name, t in captured.items() if name != "counters"}, counters)
            self._check(epoch)
            partial.rename(final)
            archive.sync(self._directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.newest_step, self.newest_time, self.error = counters["step"], time.time(), None
        for old in self._committed()[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        for stale in self._directory.glob(".partial-*"):
            # Left by a worker that was killed while saving; an epoch's members save one after the other.
            if int(stale.name.split("-")[1]) < epoch:
                shutil.rmtree(stale, ignore_errors=True)

    def _claim(self) -> None:
        number = coordinator_of(self._control.epoch)
        if number > self._lineage():
            _write(self._directory / "lineage", str(number).encode())

    def _check(self, epoch: int) -> None:
        """Only a group whose coordinator is the newest, and within reach, commits."""
        number = coordinator_of(epoch)
        if not self._control.connected or coordinator_of(self._control.epoch) != number or self._lineage() > number:
            raise Superseded("the coordinator is away, or another one has taken over")

    def _lineage(self) -> int:
        try:
            return int((self._directory / "lineage").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _committed(self) -> list[Path]:
        """Newest lineage first, in it the newest step first."""
        found = [
            (int(m[2]) >> 32, int(m[1]), p) for p in self._directory.iterdir() if (m := COMMITTED.fullmatch(p.name))
        ]
        return [path for *_, path in sorted(found, reverse=True)]


def _step_of(path: Path) -> int:
    found = COMMITTED.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once and durably."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        archive.sync(partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    archive.sync(path.parent)
