"""An unchanged torchrun script: it is started anew when its workers change, and goes on from its own snapshot."""

import signal
from pathlib import Path

import torch
from adaptrain.local.processes import LocalJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.e2e.local_jobs import finished, running, wait_for

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "torchrun_script"


def job(*command: str) -> AdaptiveTrainingJob:
    spec = {"workers": {"max": 10}, "script": {"launcher": "torchrun", "command": [*command]}}
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": "torchrun"}, "spec": spec})


def test_a_torchrun_script_survives_the_loss_of_worker_0_and_of_its_coordinator(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    with LocalJob(job("python", "torchrun_steps.py"), tmp_path, source=HERE) as local:
        local.start_coordinator()
        for _ in range(2):
            local.start_worker()
        first, survivor = running(local, 2).members
        wait_for("a snapshot", snapshot.exists, local)

        def starts() -> int:
            return local.log(f"worker-{survivor.id}").count("starting the script")

        before = starts()
        assert local.coordinator is not None
        local.coordinator.kill()
        local.coordinator.wait()
        local.start_coordinator()
        running(local, 2)
        assert starts() == before, "the script goes on while a coordinator is replaced"
        local.signal(int(first.id), signal.SIGKILL)
        wait_for("the script to be started anew", lambda: starts() == before + 1, local)
        reached = int(snapshot.read_text())
        wait_for("more steps", lambda: int(snapshot.read_text()) > reached, local)
        (tmp_path / "stop").touch()
        finished(local)
        assert starts() == before + 1
        assert local.result(int(survivor.id)).outcome == "completed"  # type: ignore[union-attr]


def test_the_example_is_a_job(tmp_path: Path) -> None:
    with LocalJob(job("python", "train.py"), tmp_path, source=EXAMPLE) as local:
        local.start_coordinator()
        local.start_worker(EPOCHS="3")
        finished(local)
    history = torch.load(tmp_path / "snapshot.pt")["history"]
    assert len(history) == 3
    assert history[-1] > 0.5


def test_a_torchrun_script_that_fails_says_why() -> None:
    with LocalJob(job("python", "-c", "1 / 0")) as local:
        local.start_coordinator()
        number = local.start_worker()
        wait_for("it to end", lambda: not local.alive(), local)
        result = local.result(number)
        assert result is not None
        assert result.message.startswith("the script's rank 0 ended with exit code 1\n")
        assert result.message.endswith("ZeroDivisionError: division by zero")
        assert local.workers[number].exitcode == 1
