"""An optional record of what each worker really loaded and applied, to prove that no sample is lost or repeated.

A worker keeps it where it is told to, else in the folder ``trace`` of the job's checkpoints if somebody made one there
before the worker started: a job on a cluster is traced by ``mkdir``, without a change of its manifest.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.state.replicated import Counters

FOLDER = "trace"


def trace_directory(told: Path | None, checkpoints: Path | None) -> Path | None:
    """Where a worker keeps its record; nowhere unless somebody asked for it."""
    if told is None and checkpoints is not None and (checkpoints / FOLDER).is_dir():
        return checkpoints / FOLDER
    return told


class SampleLog:
    """One JSON object a line in ``<directory>/<worker>.jsonl``; nothing without a directory."""

    def __init__(self, directory: Path | None, worker: str) -> None:
        self._file = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / f"{worker}.jsonl").open("a", buffering=1)

    def loaded(self, group: ElasticProcessGroup, counters: Counters, ids: torch.Tensor) -> None:
        """This worker computed a step's gradient over these samples; the step may still be discarded."""
        self._write("loaded", group, counters, ids=ids.tolist())

    def applied(self, group: ElasticProcessGroup, counters: Counters) -> None:
        """The step was applied. Call before the counters move on."""
        self._write("applied", group, counters)

    def _write(self, what: str, group: ElasticProcessGroup, c: Counters, **more: object) -> None:
        if self._file is not None:
            said = {"what": what, "time": time.time(), "group": group.epoch, "size": group.size}
            said |= {"step": c.step, "phase": c.phase, "epoch": c.epoch, "cursor": c.cursor}
            self._file.write(json.dumps(said | more) + "\n")


@dataclass(frozen=True)
class AppliedStep:
    """A step of the lineage that training ended in."""

    phase: int
    epoch: int
    cursor: int
    samples: list[int]
    """Ids that the members of the step's group loaded for it, all together."""


def records(directory: Path) -> list[list[dict[str, Any]]]:
    """What each worker wrote; the last line of a killed one may be half written."""
    return [_read(path) for path in sorted(directory.glob("*.jsonl"))]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def read_lineage(directory: Path) -> dict[int, AppliedStep]:
    """What was applied, by step, from the records of all workers.

    A step that was taken again counts in the newest group in which anybody applied it.
    """
    applied: dict[int, tuple[int, int, int, int]] = {}
    loaded: dict[tuple[int, int], dict[str, list[int]]] = {}
    for path in sorted(directory.glob("*.jsonl")):
        for said in _read(path):
            step, group = said["step"], said["group"]
            if said["what"] == "applied":
                place = group, said["phase"], said["epoch"], said["cursor"]
                applied[step] = max(applied.get(step, (0, 0, 0, 0)), place)
            else:
                loaded.setdefault((step, group), {})[path.stem] = said["ids"]
    return {
        step: AppliedStep(phase, epoch, cursor, [i for ids in loaded[step, group].values() for i in ids])
        for step, (group, phase, epoch, cursor) in sorted(applied.items())
    }


def read_times(directory: Path, worker: str) -> list[tuple[float, int]]:
    """When a worker applied which step: (Unix time in seconds, step)."""
    return [(s["time"], s["step"]) for s in _read(directory / f"{worker}.jsonl") if s["what"] == "applied"]
