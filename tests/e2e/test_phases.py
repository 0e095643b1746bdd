"""A job of several phases whose workers are killed, join and leave: in each phase, and as one follows the other."""

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from adaptrain.local.processes import LocalJob
from adaptrain_api.contracts.coordinator_api import Progress

from tests.e2e.local_jobs import (
    check_samples,
    finished,
    job,
    largest_difference,
    running,
    step_of,
    wait_for,
)
from tests.support.paths import ROOT

SAMPLES = 1078
MODEL = {"name": "tests.faults.model:mlp", "args": {"seconds": 0.02}}
PHASES: list[dict[str, Any]] = [
    {
        "name": "pretrain",
        "type": "supervised",
        "optimizer": {"name": "adamw", "learningRate": 0.001},
        "batch": {"size": 64},
        "augmentation": {"shiftPixels": 1},
        "stop": {"epochs": 40},
    },
    {
        "name": "finetune",
        "type": "supervised",
        "optimizer": {"name": "sgd", "learningRate": 0.02, "momentum": 0.9, "clipNorm": 1.0},
        "batch": {"size": 64},
        "stop": {"epochs": 40},
    },
]


def two_phases(**more: Any) -> Any:
    return job(model=MODEL, phases=PHASES, **more)


def phase_of(local: LocalJob) -> int:
    """Number of the phase that runs; 2: all are complete."""
    p = local.progress()
    return 0 if p is None else sum(phase.state == "complete" for phase in p.phases)


def disturb(local: LocalJob, acts: list[str], size: int) -> int:
    """Do one after the other, each a few steps after the one before. Returns how many workers there are then."""
    for act in acts:
        at = step_of(local) + 5
        wait_for("steps", lambda at=at: step_of(local) >= at, local)
        victim = local.alive()[0]
        if act == "join":
            local.start_worker()
            size += 1
        else:
            local.signal(victim, signal.SIGKILL if act == "kill" else signal.SIGTERM)
            wait_for("the worker's end", lambda victim=victim: victim not in local.alive(), local)
            size -= 1
        running(local, size)
    return size


def undisturbed(here: Path, phases: list[dict[str, Any]]) -> Progress:
    """One worker alone."""
    with LocalJob(job(model=MODEL | {"args": {"seconds": 0}}, phases=phases), checkpoints=here) as local:
        local.start_coordinator()
        local.start_worker()
        return finished(local)


def test_kills_and_resizes_in_both_phases_and_at_the_change_change_nothing(tmp_path: Path) -> None:
    with LocalJob(two_phases(), checkpoints=tmp_path / "disturbed", trace=tmp_path / "trace") as local:
        local.start_coordinator()
        for _ in range(3):
            local.start_worker()
        running(local, 3)
        size = disturb(local, ["kill", "join", "kill", "join", "leave", "join"], 3)
        assert phase_of(local) == 0, "the first phase was to be disturbed"
        wait_for("the change", lambda: phase_of(local) == 1, local)
        size = disturb(local, ["kill", "join", "kill", "join", "kill"], size)
        assert phase_of(local) == 1, "the second phase was to be disturbed"
        ended = finished(local)
    assert ended.result is not None
    assert ended.result.outcome == "completed"
    assert check_samples(tmp_path / "trace", SAMPLES, 64) == ended.step == 2 * 40 * 17
    alone = undisturbed(tmp_path / "alone", PHASES)
    assert largest_difference(tmp_path / "disturbed", tmp_path / "alone") <= 1e-9
    told = [(p.name, p.state, p.steps, p.epochs, p.message) for p in ended.phases]
    assert told == [("pretrain", "complete", 680, 40, "40 epochs"), ("finetune", "complete", 680, 40, "40 epochs")]
    for one, other in zip(ended.phases, alone.phases, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-9)


def test_a_job_that_was_stopped_goes_on_in_its_second_phase(tmp_path: Path) -> None:
    with LocalJob(two_phases(), checkpoints=tmp_path / "stopped") as local:
        local.start_coordinator()
        local.start_worker()
        wait_for("the change", lambda: phase_of(local) == 1, local)
        at = step_of(local) + 5
        wait_for("steps", lambda: step_of(local) >= at, local)
        local.signal(local.alive()[0], signal.SIGTERM)
        wait_for("its end", lambda: not local.alive(), local)
    with LocalJob(two_phases(), checkpoints=tmp_path / "stopped") as local:
        local.start_coordinator()
        local.start_worker()
        ended = finished(local)
    assert ended.step == 2 * 40 * 17
    undisturbed(tmp_path / "alone", PHASES)
    assert largest_difference(tmp_path / "stopped", tmp_path / "alone") <= 1e-9


def test_the_phase_of_the_example_is_exact_under_kills(tmp_path: Path) -> None:
    manifest = yaml.safe_load((ROOT / "examples/own_phase/job.yaml").read_text())
    phases = manifest["spec"]["phases"]
    phases[1] |= {"batch": {"size": 64}, "stop": {"epochs": 40}}
    with LocalJob(job(model=MODEL, phases=phases), checkpoints=tmp_path / "disturbed") as local:
        local.start_coordinator()
        for _ in range(2):
            local.start_worker()
        wait_for("the change", lambda: phase_of(local) == 1, local)
        disturb(local, ["kill", "join", "kill"], 2)
        ended = finished(local)
    assert ended.phases[1].metrics.keys() == {"val/accuracy", "val/loss", "val/noisy_accuracy"}
    undisturbed(tmp_path / "alone", phases)
    assert largest_difference(tmp_path / "disturbed", tmp_path / "alone") <= 1e-9


def test_the_example_of_a_phase_is_short() -> None:
    assert len((ROOT / "examples/own_phase/robust.py").read_text().splitlines()) <= 120
