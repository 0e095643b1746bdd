"""Training loops as strangers write them, while workers are killed and come: equal to one worker, or refused."""

import signal
import time
from pathlib import Path

import pytest
from adaptrain.local.processes import LocalJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.e2e.local_jobs import finished, largest_difference, wait_for

HERE = Path(__file__).parent / "foreign"
PACE = "0.25"
"""Seconds that a step takes at least, so that faults strike in the middle."""


def script(*command: str) -> AdaptiveTrainingJob:
    spec = {"workers": {"min": 1, "max": 10}, "script": {"command": ["python", *command]}}
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": "foreign"}, "spec": spec})


def disturb(local: LocalJob) -> int:
    """Until training ends, whenever all workers train together, kill one or ask it to leave, and replace it. Returns
    how often."""
    faults = 0
    while (progress := local.progress()) is None or progress.result is None:
        alive = local.alive()
        if progress is not None and len(progress.members) == len(alive) >= 2 and progress.state == "running":
            local.signal(alive[faults // 2 % 2], (signal.SIGKILL, signal.SIGTERM)[faults % 2])
            local.start_worker(PACE=PACE)
            faults += 1
        time.sleep(0.1)
    return faults


@pytest.mark.parametrize(
    "command",
    [("resnet.py", "24"), ("gan.py", "30", "one"), ("ema.py", "24", "inside"), ("thaw.py", "24")],
    ids=lambda command: command[0].removesuffix(".py"),
)
def test_it_trains_as_one_worker_would(command: tuple[str, ...], tmp_path: Path) -> None:
    with LocalJob(script(*command), tmp_path / "several", source=HERE) as local:
        local.start_coordinator()
        for _ in range(3):
            local.start_worker(PACE=PACE)
        assert disturb(local) > 0
        steps = finished(local).step
    with LocalJob(script(*command), tmp_path / "one", source=HERE) as local:
        local.start_coordinator()
        local.start_worker()
        assert finished(local).step == steps
    assert largest_difference(tmp_path / "one", tmp_path / "several") < 1e-9


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("gan.py", "5", "two"), "give it one optimizer, with a parameter group for each part"),
        (("ema.py", "5", "outside"), "AveragedModel averages weights, and is no part of the model"),
    ],
    ids=["gan", "ema"],
)
def test_what_workers_would_not_share_is_refused_before_the_first_step(command: tuple[str, ...], says: str) -> None:
    with LocalJob(script(*command), source=HERE) as local:
        local.start_coordinator()
        number = local.start_worker()
        wait_for("it to end", lambda: not local.alive(), local)
        result = local.result(number)
        assert result is not None
        assert says in result.message
        assert (progress := local.progress()) is None or all(m.step == 0 for m in progress.members)
