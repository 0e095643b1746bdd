"""Steps that are no number, on one worker of several, while workers are lost: all decide alike."""

import signal
from pathlib import Path
from typing import Any

from adaptrain.local.processes import LocalJob

from tests.e2e.local_jobs import final_tensors, finished, job, largest_difference, running, wait_for
from tests.e2e.test_elastic import Run

DATA = {"data": {"name": "tests.e2e.poisoned:one_image"}}


def skipped(local: LocalJob, times: int) -> None:
    """Wait until so many steps were passed over."""
    wait_for(f"{times} skipped steps", lambda: (p := local.progress()) and (p.skipped_steps or 0) >= times, local)


def lose_one(local: LocalJob, after: int) -> None:
    """Train with two workers, and replace the first one once so many steps were passed over."""
    first, _ = local.start_worker(), local.start_worker()
    running(local, 2)
    skipped(local, after)
    local.signal(first, signal.SIGKILL)
    running(local, 1)
    local.start_worker()
    running(local, 2)


def test_a_poisoned_sample_is_passed_over_whoever_is_lost(tmp_path: Path) -> None:
    phase: dict[str, Any] = {"nonFinite": "skip", "batch": {"size": 64, "microSize": 10}}
    run = Run(tmp_path, **DATA, phase=phase)
    with run as local:
        lose_one(local, after=1)
        skipped(local, 3)
        steps = run.stop()
    with LocalJob(job(**DATA, phase=phase | {"stop": {"steps": steps}}), checkpoints=tmp_path / "alone") as local:
        local.start_coordinator()
        local.start_worker()
        assert finished(local).step == steps
    assert largest_difference(tmp_path / "alone", tmp_path / "checkpoints") < 1e-9


def test_all_roll_back_to_the_same_checkpoint(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        data={"name": "tests.e2e.poisoned:after_a_checkpoint"},
        model={"name": "tests.faults.model:mlp", "args": {"seconds": 0.03}},
        phase={"nonFinite": "rollback"},
        checkpoint={"volume": {"persistentVolumeClaim": {"claimName": "x"}}, "everySeconds": 1},
    )
    with run as local:
        lose_one(local, after=2)
        skipped(local, 4)
        run.stop()
    assert all(bool(t.isfinite().all()) for t in final_tensors(tmp_path / "checkpoints").values())
