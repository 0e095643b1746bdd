"""``metrics.jsonl`` of jobs of real processes that are killed: the rows of a run that nothing disturbed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from adaptrain.local.processes import LocalJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.e2e.local_jobs import job, running, step_of, wait_for
from tests.e2e.test_script import HERE

CHECKPOINT = {"volume": {"persistentVolumeClaim": {"claimName": "x"}}, "everySeconds": 1, "keep": 2}
SCRIPT = {"workers": {"min": 1, "max": 10}, "script": {"command": ["python", "script.py", "map", "100000"]}}
JOBS = {
    "supervised": job(checkpoint=CHECKPOINT),
    "script": AdaptiveTrainingJob.model_validate(
        {"metadata": {"name": "script"}, "spec": SCRIPT | {"checkpoint": CHECKPOINT}}
    ),
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def saved_step(local: LocalJob) -> int:
    progress = local.progress()
    return (progress.checkpoint_step or 0) if progress is not None else 0


def kill_all(local: LocalJob, how: signal.Signals = signal.SIGKILL) -> None:
    for number in local.alive():
        local.signal(number, how)
    wait_for("all to end", lambda: not local.alive(), local)


@pytest.mark.parametrize("kind", list(JOBS))
def test_each_step_is_told_once_whatever_is_killed(kind: str, tmp_path: Path) -> None:
    with LocalJob(JOBS[kind], tmp_path / "checkpoints", source=HERE) as local:

        def goes_on(size: int) -> None:
            """So many members train, and save what they train."""
            running(local, size)
            begin = step_of(local)
            wait_for("a checkpoint", lambda: saved_step(local) > begin, local)

        local.start_coordinator()
        local.start_worker()
        goes_on(1)
        local.start_worker()
        goes_on(2)
        local.signal(min(local.alive()), signal.SIGKILL)  # the one that saves
        goes_on(1)
        local.start_worker()
        goes_on(2)
        kill_all(local)
        local.start_worker()
        goes_on(1)
        assert local.coordinator is not None
        local.coordinator.kill()
        local.coordinator.wait()
        local.start_coordinator()
        local.start_worker()
        goes_on(2)
        kill_all(local, signal.SIGTERM)
    found = rows(tmp_path / "checkpoints")
    newest = max((tmp_path / "checkpoints").glob("step-*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    assert newest.read_text() == (tmp_path / "checkpoints" / "metrics.jsonl").read_text()
    last = found[-1]["step"]
    assert [row["step"] for row in found if "batch_size" in row] == list(range(1, last + 1))
    with LocalJob(JOBS[kind], tmp_path / "reference", source=HERE) as local:
        local.start_coordinator()
        local.start_worker()
        wait_for("as many steps", lambda: step_of(local) > last, local)
        kill_all(local, signal.SIGTERM)
    expected = [row for row in rows(tmp_path / "reference") if row["step"] < last]
    found = [row for row in found if row["step"] < last]
    assert len(found) == len(expected)
    assert any("val/loss" in row for row in found)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
