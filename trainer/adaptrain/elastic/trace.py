"""An optional record of what each worker really loaded and applied, to prove that no sample is lost or repeated."""

import json
import time
from pathlib import Path

import torch

from adaptrain.elastic.group import Group
from adaptrain.elastic.state import Counters


class Trace:
    """One JSON object a line in ``<directory>/<worker>.jsonl``; nothing without a directory."""

    def __init__(self, directory: Path | None, worker: str) -> None:
        self._file = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / f"{worker}.jsonl").open("a", buffering=1)

    def loaded(self, group: Group, counters: Counters, ids: torch.Tensor) -> None:
        """This worker computed a step's gradient over these samples; the step may still be discarded."""
        self._write("loaded", group, counters, ids=ids.tolist())

    def applied(self, group: Group, counters: Counters) -> None:
        """The step was applied. Call before the counters move on."""
        self._write("applied", group, counters)

    def _write(self, what: str, group: Group, c: Counters, **more: object) -> None:
        if self._file is not None:
            said = {"what": what, "time": time.time(), "group": group.epoch, "size": group.size}
            said |= {"step": c.step, "epoch": c.epoch, "cursor": c.cursor}
            self._file.write(json.dumps(said | more) + "\n")
