"""Workers that take long until their first step, as local processes: all others train on meanwhile."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from adaptrain.local.processes import LocalJob
from adaptrain_api.contracts.coordinator_api import Progress, Result

from tests.e2e.gated import reached
from tests.e2e.local_jobs import finished, job, running, wait_for
from tests.e2e.test_elastic import Run

MODEL = {"name": "tests.e2e.gated:model"}


def progress_of(local: LocalJob) -> Progress:
    found: Progress = wait_for("progress", local.progress, local)
    return found


@contextmanager
def standing(path: Path, **spec: Any) -> Iterator[tuple[Run, LocalJob, int, Path]]:
    """A job of two workers that train, and a third that stands in its first pass until its gate is made."""
    run, gate = Run(path, **{"model": MODEL} | spec), path / "gate"
    with run as local:
        local.start_worker()
        local.start_worker()
        before = running(local, 2)
        third = local.start_worker(GATE=str(gate))
        wait_for("the third to stand", lambda: reached(gate).exists(), local)
        run.go_on(200)
        now = progress_of(local)
        assert (now.joining, now.preparing) == ([str(third)], [str(third)])
        assert (now.epoch, len(now.members)) == (before.epoch, 2), "nothing has changed for the others"
        yield run, local, third, gate


@pytest.mark.parametrize("processes", [1, 2])
def test_others_train_on_while_a_first_pass_takes_long(tmp_path: Path, processes: int) -> None:
    model = {"name": "tests.e2e.gated:sharded"} if processes > 1 else MODEL
    spec = {"model": model, "workers": {"min": 1, "max": 10, "processesPerWorker": processes}}
    with standing(tmp_path, **spec) as (run, local, _, gate):
        gate.touch()
        joined = running(local, 3)
        assert joined.preparing == []
        run.go_on()
        steps = run.stop()
    run.check(steps)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_ends_while_it_prepares_was_never_there(tmp_path: Path, how: signal.Signals) -> None:
    with standing(tmp_path) as (run, local, third, _):
        before = progress_of(local)
        local.signal(third, how)
        wait_for("its end", lambda: third not in local.alive(), local)
        wait_for("the coordinator to notice", lambda: progress_of(local).joining == [], local)
        run.go_on()
        after = progress_of(local)
        assert (after.epoch, after.silent) == (before.epoch, [])
        if how is signal.SIGTERM:
            result = local.result(third)
            assert result is not None
            assert (local.workers[third].exitcode, result.outcome) == (0, "left")


def test_a_new_coordinator_is_told_who_still_prepares(tmp_path: Path) -> None:
    with standing(tmp_path) as (run, local, third, gate):
        assert local.coordinator is not None
        local.coordinator.kill()
        local.coordinator.wait()
        local.start_coordinator()
        taken = running(local, 2)
        assert any("took over" in change.message for change in taken.recent_changes)
        wait_for("the third's hello", lambda: progress_of(local).preparing == [str(third)], local)
        run.go_on()
        assert progress_of(local).epoch == taken.epoch
        gate.touch()
        running(local, 3)
        steps = run.stop()
    run.check(steps)


def test_who_becomes_prepared_without_a_coordinator_joins_the_next(tmp_path: Path) -> None:
    with standing(tmp_path) as (run, local, third, gate):
        assert local.coordinator is not None
        local.coordinator.kill()
        local.coordinator.wait()
        gate.touch()
        step = "worker-0.jsonl"
        size = (tmp_path / "trace" / step).stat().st_size
        wait_for("steps meanwhile", lambda: (tmp_path / "trace" / step).stat().st_size > size + 20_000, local)
        local.start_coordinator()
        assert str(third) in {member.id for member in running(local, 3).members}
        run.go_on()


def test_a_first_pass_that_fails_ends_its_worker_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, model=MODEL)
    with run as local:
        local.start_worker()
        before = running(local, 1)
        broken = local.start_worker(BROKEN="1")
        wait_for("its end", lambda: broken not in local.alive(), local)
        run.go_on()
        assert progress_of(local).epoch == before.epoch
        result = local.result(broken)
        assert result is not None
        assert (local.workers[broken].exitcode, result.outcome) == (1, "failed")
        assert result.message.strip().endswith("RuntimeError: this accelerator knows no such layer")


def test_who_prepares_when_training_is_complete_ends_at_once(tmp_path: Path) -> None:
    with LocalJob(job(model=MODEL, phase={"stop": {"steps": 60}}), checkpoints=tmp_path / "checkpoints") as local:
        local.start_coordinator()
        late = local.start_worker(GATE=str(tmp_path / "gate"))
        wait_for("it to stand", lambda: reached(tmp_path / "gate").exists(), local)
        local.start_worker()
        assert finished(local).result is not None
        result = local.result(late)
        assert result is not None
        assert (local.workers[late].exitcode, result.outcome) == (0, "left")


TORCH = """
import pathlib, time
pathlib.Path("REACHED").touch()
while True:
    time.sleep(0.1)
"""


def test_hello_is_said_before_torch_is_imported_and_who_is_asked_to_end_then_does(tmp_path: Path) -> None:
    """Of this worker the import of torch never ends."""
    (tmp_path / "torch.py").write_text(TORCH.replace("REACHED", str(tmp_path / "reached")))
    run = Run(tmp_path)
    with run as local:
        told = {
            **{"ADAPTRAIN_COORDINATOR": "{}:{}".format(*local.control_address), "ADAPTRAIN_ADDRESS": "127.0.0.1"},
            **{"ADAPTRAIN_WORKER_ID": "importing", "ADAPTRAIN_WORKER_NAME": "importing"},
            **{"ADAPTRAIN_METRICS_PORT": "0", "ADAPTRAIN_TERMINATION_LOG": str(tmp_path / "end")},
            "PYTHONPATH": str(tmp_path),
        }
        command = [sys.executable, "-m", "adaptrain.cli.main", "worker"]
        with subprocess.Popen(command, env=local._environment(told)) as importing:
            try:
                wait_for("its import", lambda: (tmp_path / "reached").exists(), local)
                wait_for("its hello", lambda: progress_of(local).preparing == ["importing"], local)
                local.start_worker()
                begun = running(local, 1)
                run.go_on()
                assert progress_of(local).epoch == begun.epoch
                importing.terminate()
                assert importing.wait(60) == 0
            finally:
                importing.kill()
        assert Result.model_validate_json((tmp_path / "end").read_text()).outcome == "left"
