"""``adaptrain search run`` of a search that trains one network for all cells first, whose evaluators are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from adaptrain.local.processes import LocalJob
from adaptrain.search.algorithms.oneshot import SUPERNET
from adaptrain.search.oneshot.artifact import FOLDER
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.study.study import as_architecture, as_ranking
from optuna.trial import FrozenTrial, TrialState

from tests.e2e.local_searches import ended, numbers, running, search, told

PHASE = {
    "name": "train",
    "type": "supervised",
    "optimizer": {"learningRate": 0.01},
    "batch": {"size": 64},
    "stop": {"steps": 4},
}
EPOCHS = 60
"""So many that the network is still trained when it was killed twice."""
SPEC: dict[str, Any] = {
    "space": {"name": "nasbench201", "args": {"cells": 1, "width": 4}},
    "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
    "algorithm": {"name": "darts", "args": {"epochs": EPOCHS, "samples": 160}},
    "budget": {"trials": 5},
    "parallelism": {"max": 2},
    "trial": {"data": {"name": "digits"}, "phases": [PHASE]},
}


def passes(folder: Path) -> int:
    """Of the network, that are kept."""
    if not (folder / FOLDER).exists():
        return 0
    return max((int(path.name.split("-")[0]) for path in (folder / FOLDER).glob("*-*.pt")), default=0)


def ranked(study: list[FrozenTrial]) -> list[Any]:
    """The ranking; what was trained is the first of it, of cells that compute the same only one."""
    first, *others = sorted(study, key=lambda one: one.user_attrs["trial"])
    assert as_architecture(first.user_attrs["architecture"]) == SUPERNET
    ranking = as_ranking(first.user_attrs["ranking"])
    assert [one.state for one in others] == [TrialState.COMPLETE] * 4
    different: dict[Any, Any] = {}
    for one, _ in ranking:
        different.setdefault(NasBench201().key(one), one)
    assert [as_architecture(one.user_attrs["architecture"]) for one in others] == list(different.values())[:4]
    return ranking


def test_a_lost_network_is_continued_and_ranks_the_same(tmp_path: Path) -> None:
    with running(search(**SPEC), tmp_path / "calm") as (_, keeper):
        ended(keeper)
    kills = list[tuple[str, int]]()

    def disturb(local: LocalJob) -> Callable[[int], None]:
        def now(done: int) -> None:
            kept = passes(tmp_path / "disturbed")
            if done or len(kills) >= 2 or kept <= (kills[-1][1] if kills else 0):
                return
            if kills and local.coordinator is not None:
                local.coordinator.kill()
            for worker in local.alive():  # one of them has it
                local.signal(worker, signal.SIGKILL)
            kills.append(("coordinator too" if kills else "evaluators", kept))

        return now

    with running(search(**SPEC), tmp_path / "disturbed") as (local, keeper):
        found = ended(keeper, disturb(local))
    assert [who for who, _ in kills] == ["evaluators", "coordinator too"]
    assert kills[1][1] > kills[0][1] > 0, "what was lost the second time had gone on from the first"
    assert found.complete == 5
    calm, disturbed = told(tmp_path / "calm"), told(tmp_path / "disturbed")
    assert sorted(numbers(disturbed)) == list(range(5))
    assert ranked(disturbed) == ranked(calm)
    kept = disturbed[0].user_attrs["weights"]["path"]
    assert [f"{FOLDER}/{path.name}" for path in (tmp_path / "disturbed" / FOLDER).iterdir()] == [kept]
    assert kept.startswith(f"{FOLDER}/{EPOCHS}-")


def test_the_command_goes_on_after_it_was_killed_while_the_network_trained(tmp_path: Path) -> None:
    manifest, output = tmp_path / "search.yaml", tmp_path / "out"
    spec = SPEC | {"algorithm": {"name": "spos", "args": {"epochs": 30, "samples": 160, "evaluations": 40}}}
    written = {"apiVersion": "adaptrain.io/v1alpha1", "kind": "ArchitectureSearch", "metadata": {"name": "cells"}}
    manifest.write_text(yaml.safe_dump(written | {"spec": spec}))
    command = [sys.executable, "-m", "adaptrain.cli.main", "search", "run", str(manifest), "--output", str(output)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not passes(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = passes(output)
    assert 0 < kept < 30
    second = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert second.returncode == 0, second.stderr
    assert "5 trials ended: the budget is used up" in second.stdout
    assert "val/accuracy" in second.stdout
    study = told(output)
    assert len(ranked(study)) == 40
    assert len(study) == 5
