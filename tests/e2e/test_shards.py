"""Workers of several processes that share a model: the same steps as one process takes, whoever is lost."""

import os
import signal
from pathlib import Path
from typing import Any

from adaptrain.local.processes import LocalJob

from tests.e2e.local_jobs import job, running, step_of, wait_for
from tests.e2e.test_elastic import Run

MODEL = {"name": "mlp", "args": {"width": 256, "depth": 2, "dtype": "float64"}}
"""Its middle layer is large enough to be gathered by itself."""


def spec(processes: int, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "workers": {"min": 1, "max": 10, "processesPerWorker": processes}, **more}


def followers(local: LocalJob, worker: int) -> list[int]:
    """Process numbers of a worker's other processes, in their order."""
    lead = local.workers[worker].pid
    return sorted(map(int, Path(f"/proc/{lead}/task/{lead}/children").read_text().split()))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_sharded_workers_are_lost_and_come(tmp_path: Path) -> None:
    run = Run(tmp_path, **spec(2))
    with run as local:
        first, second = local.start_worker(), local.start_worker()
        running(local, 2)
        run.go_on()
        local.start_worker()
        running(local, 3)
        (follower,) = followers(local, first)
        local.signal(first, signal.SIGKILL)
        running(local, 2)
        wait_for("the lost worker's other process to end", lambda: gone(follower))
        run.go_on()
        os.kill(followers(local, second)[0], signal.SIGKILL)
        running(local, 1)
        wait_for("the worker to end with its process", lambda: second not in local.alive())
        assert local.workers[second].exitcode == -signal.SIGKILL
        run.go_on()
        local.start_worker()
        running(local, 2)
        run.go_on()
        steps = run.stop()
    run.check(steps)


def test_a_hung_process_takes_its_worker_along(tmp_path: Path) -> None:
    run = Run(tmp_path, **spec(2))
    with run as local:
        hung, other = local.start_worker(), local.start_worker()
        running(local, 2)
        os.kill(followers(local, hung)[0], signal.SIGSTOP)
        progress = running(local, 1)
        assert [m.id for m in progress.members] == [str(other)]
        wait_for("its worker to end", lambda: hung not in local.alive())
        run.go_on()
        steps = run.stop()
    run.check(steps)


def test_a_checkpoint_fits_any_number_of_processes(tmp_path: Path) -> None:
    """Each time all processes are others, and the shards too; the parameters are those of one undisturbed process."""
    steps = 0
    for processes in (2, 1, 3):
        run = Run(tmp_path, **spec(processes))
        with run as local:
            local.start_worker()
            running(local, 1)
            run.go_on()
            if steps:
                assert f"step-{steps:010d}" in local.log("worker-0"), "it did not resume"
            steps = run.stop()
    run.check(steps)


def test_early_stopping_and_clipping_see_the_whole_model(tmp_path: Path) -> None:
    """The best weights, the norm of the gradient and the metrics are of all shards."""
    phase = {
        "stop": {"epochs": 5},
        "optimizer": {"name": "adamw", "learningRate": 0.003, "clipNorm": 0.5},
    }
    found = []
    for processes in (1, 2):
        with LocalJob(job(phase=phase, **spec(processes)), checkpoints=tmp_path / str(processes)) as local:
            local.start_coordinator()
            local.start_worker()
            wait_for("the end", lambda local=local: not local.alive(), local)
            result = local.result(0)
            assert result is not None
            assert result.outcome == "completed"
            found.append((result.metrics, (tmp_path / str(processes) / "model.safetensors").stat().st_size))
    assert found[0][1] == found[1][1]
    assert found[0][0].keys() == found[1][0].keys()
    for name, value in found[0][0].items():
        assert abs(found[1][0][name] - value) < 1e-9, name


def test_the_words_of_a_process_that_fails_are_kept(tmp_path: Path) -> None:
    model = {"name": "tests.e2e.broken:on_second_process"}
    with LocalJob(job(**spec(2) | {"model": model})) as local:
        local.start_coordinator()
        worker = local.start_worker()
        wait_for("its end", lambda: not local.alive(), local)
        result = local.result(worker)
        assert result is not None
        assert "this process has no accelerator" in result.message
        assert step_of(local) == 0
