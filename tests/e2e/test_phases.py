"""A job of several phases whose workers are killed, join and leave: in each phase, and as one follows the other."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrain.local.processes import LocalJob
from adaptrain.phases.base import Context, Phase
from adaptrain_api.contracts.coordinator_api import Progress
from torch.nn import functional as F

from tests.e2e.local_jobs import (
    check_samples,
    finished,
    job,
    largest_difference,
    running,
    step_of,
    wait_for,
)

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


class Denoise(Phase):
    """Classes of noisy images."""

    def __init__(self, context: Context, noise: float = 0.1) -> None:
        super().__init__(context)
        self._noise = noise

    def losses(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # By sample, not by place in the batch: else the noise would depend on who computes the sample.
        noise = torch.sin(1000 * x.flatten(1).cumsum(1)).view_as(x)
        return F.cross_entropy(model(x + self._noise * noise), y, reduction="none")


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


def test_a_phase_of_the_users_own(tmp_path: Path) -> None:
    custom = {"name": f"{__name__}:Denoise", "args": {"noise": 0.2}}
    phases = [PHASES[0] | {"stop": {"epochs": 3}}, PHASES[1] | {"type": "custom", "custom": custom}]
    with LocalJob(job(model=MODEL, phases=phases), checkpoints=tmp_path / "disturbed") as local:
        local.start_coordinator()
        for _ in range(2):
            local.start_worker()
        wait_for("the change", lambda: phase_of(local) == 1, local)
        disturb(local, ["kill", "join", "kill"], 2)
        ended = finished(local)
    assert ended.phases[1].metrics.keys() == {"val/loss"}
    undisturbed(tmp_path / "alone", phases)
    assert largest_difference(tmp_path / "disturbed", tmp_path / "alone") <= 1e-9
