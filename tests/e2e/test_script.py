"""A user's own loop around the elastic core: whatever befalls its workers, it trains as one of them alone would."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from adaptrain.local.processes import LocalJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.e2e.local_jobs import check_samples, finished, largest_difference, running, step_of, wait_for
from tests.faults.wires import Wires, sever

HERE = Path(__file__).parent
SAMPLES, BATCH = 500, 48
EXAMPLES = HERE.parent.parent / "examples" / "own_script"


def script(*command: str) -> AdaptiveTrainingJob:
    spec = {"workers": {"min": 1, "max": 10}, "script": {"command": ["python", *command]}}
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": "script"}, "spec": spec})


def adaptrain_run(command: list[str], folder: Path, **spec: Any) -> subprocess.CompletedProcess[str]:
    """``adaptrain run`` of a manifest beside which the command finds its files."""
    manifest = {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "AdaptiveTrainingJob",
        "metadata": {"name": "script"},
        "spec": {"script": {"command": command}, "maxRestarts": 0, **spec},
    }
    (folder / "job.yaml").write_text(json.dumps(manifest))
    run = [sys.executable, "-m", "adaptrain.cli.main", "run", folder / "job.yaml", "--output", folder / "output"]
    return subprocess.run(run, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "400"})


def counters(checkpoints: Path) -> dict[str, Any]:
    newest = max(checkpoints.glob("step-*/counters.json"))
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_script_trains_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    passes = 60
    job = script("script.py", kind, str(passes))
    chance = random.Random(kind)
    with LocalJob(job, tmp_path / "checkpoints", tmp_path / "trace", HERE) as local:
        local.start_coordinator()
        wires = Wires(local.control_address)
        for _ in range(3):
            local.start_worker(ADAPTRAIN_COORDINATOR=f"127.0.0.1:{wires.port}")
        running(local, 3)
        wait_for("all to have trained", lambda: all(member.trained for member in running(local, 3).members), local)
        victim = local.alive()[0]
        local.signal(victim, signal.SIGKILL)
        running(local, 2)
        local.start_worker(ADAPTRAIN_COORDINATOR=f"127.0.0.1:{wires.port}")
        local.signal(local.alive()[0], signal.SIGTERM)
        # Connections break again and again, also in the last step of a pass.
        while (progress := local.progress()) is None or progress.result is None:
            for number in local.alive():
                if (pid := local.workers[number].pid) is not None and chance.random() < 0.5:
                    sever(pid, wires.port)
            time.sleep(chance.uniform(0.02, 0.2))
        progress = finished(local)
        wires.close()
    assert progress.result is not None
    assert check_samples(tmp_path / "trace", SAMPLES, BATCH) == progress.result.step == passes * 11
    found = counters(tmp_path / "checkpoints")
    assert found["more"]["script"]["memory"] == {"passes": passes}
    assert found["metrics"].keys() == {"val/loss"}
    with LocalJob(job, tmp_path / "reference", source=HERE) as local:
        local.start_coordinator()
        local.start_worker()
        finished(local)
    assert largest_difference(tmp_path / "reference", tmp_path / "checkpoints") < 1e-9
    assert found["more"]["scheduler"] == counters(tmp_path / "reference")["more"]["scheduler"]


def test_a_script_resumes_where_it_was(tmp_path: Path) -> None:
    job = script("script.py", "map", "1000")
    with LocalJob(job, tmp_path / "checkpoints", source=HERE) as local:
        local.start_coordinator()
        first = local.start_worker()
        wait_for("some passes", lambda: step_of(local) > 50, local)
        local.signal(first, signal.SIGTERM)
        wait_for("it to leave", lambda: not local.alive(), local)
        left = local.result(first)
        assert left is not None
        local.start_worker()
        wait_for("more steps", lambda: step_of(local) > left.step, local)
        assert "resumed from" in str(local.progress())
    kept = counters(tmp_path / "checkpoints")
    assert (kept["step"], kept["more"]["script"]["memory"]["passes"]) == (left.step, left.epoch)


def test_workers_that_disagree_on_the_end_say_so() -> None:
    with LocalJob(script("script.py", "map", "1000"), source=HERE) as local:
        local.start_coordinator()
        one = local.start_worker()
        running(local, 1)
        other = local.start_worker(LEAVE="1")
        wait_for("both to end", lambda: not local.alive(), local)
        for number in (one, other):
            result = local.result(number)
            assert result is not None, local.log(f"worker-{number}")
            assert "1 of 2 workers left the loop at step" in result.message


def test_others_go_on_while_one_compiles_its_first_step() -> None:
    with LocalJob(script("script.py", "map", "100000"), source=HERE) as local:
        local.start_coordinator()
        local.start_worker()
        running(local, 1)
        slow = local.start_worker(COMPILES="15")

        def told() -> bool:
            progress = local.progress()
            changes = [] if progress is None else progress.recent_changes
            return any("still works on the first step" in change.message for change in changes)

        wait_for("the others to go on", told, local)
        step = step_of(local)
        wait_for("steps meanwhile", lambda: step_of(local) > step + 20, local)
        progress = local.progress()
        assert progress is not None
        assert (len(progress.members), progress.joining, progress.silent) == (1, [str(slow)], [])
        running(local, 2)
        assert sorted(local.alive()) == [0, slow], "it is the same one"


def test_workers_with_different_models_say_so() -> None:
    with LocalJob(script("script.py", "map", "1000"), source=HERE) as local:
        local.start_coordinator()
        local.start_worker()
        running(local, 1)
        other = local.start_worker(WIDTH="17")
        wait_for("it to end", lambda: other not in local.alive(), local)
        result = local.result(other)
        assert result is not None
        assert "is [17, 64] float64 here and [16, 64] float64 on the group's first worker" in result.message
        running(local, 1)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["python", "-c", "pass"], "it exited with 0 but left no result: a script trains in `with adaptrain.elastic"),
        (["python", "-c", "1 / 0"], "ZeroDivisionError: division by zero"),
        (["no-such-program"], "script.command: 'no-such-program' can't be run: No such file or directory"),
    ],
)
def test_a_script_that_does_not_train_says_why(command: list[str], says: str, tmp_path: Path) -> None:
    done = adaptrain_run(command, tmp_path)
    assert done.returncode == 1
    assert says in done.stdout


def test_the_same_error_on_every_start_is_not_tried_for_minutes(tmp_path: Path) -> None:
    done = adaptrain_run(["python", "-c", "import nosuchmodule"], tmp_path, maxRestarts=10)
    assert done.returncode == 1
    assert "no worker came so far as to train: 3 in a row failed alike" in done.stdout
    assert "No module named 'nosuchmodule'" in done.stdout


def test_a_rule_by_exit_code_holds_here_too(tmp_path: Path) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]
    command = ["python", "-c", "import sys; sys.exit(42)"]
    done = adaptrain_run(command, tmp_path, maxRestarts=10, podFailurePolicy={"rules": rules})
    assert done.returncode == 1
    assert "podFailurePolicy ends the job: exit code 42" in done.stdout


def test_what_a_script_does_after_training_does_not_begin_it_anew(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text((HERE / "script.py").read_text() + "\nsys.exit('no room for the report')\n")
    done = adaptrain_run(["python", "train.py", "map", "2"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Succeeded at step 22" in done.stdout


MANY = """
import torch
from adaptrain.elastic import Elastic
from torch.utils.data import TensorDataset

model = torch.nn.Linear(8, 2)
data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
with Elastic(model, torch.optim.SGD(model.parameters(), lr=0.1), data, batch_size=16) as elastic:
    for epoch in elastic.epochs(3):
        for x, y in elastic:
            elastic.step(torch.nn.functional.cross_entropy(model(x), y))
        elastic.report(**{f"val/accuracy/n{1440764 + c:08d}": c / 1e4 for c in range(1000)}, **{"val/accuracy": 0.5})
        elastic.keep_best()
"""


def test_a_training_that_reports_a_thousand_metrics_is_complete(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(MANY)
    done = adaptrain_run(["python", "train.py"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Succeeded at step 12" in done.stdout
    assert "best/val/accuracy 0.5" in " ".join(done.stdout.split())


def test_the_example_runs_by_itself_and_as_a_job() -> None:
    alone = subprocess.run(
        [sys.executable, EXAMPLES / "train.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if not k.startswith("ADAPTRAIN_")},
    )
    assert alone.stdout.splitlines()[-1].startswith("epoch 19: accuracy 0.")


def test_the_example_adds_few_lines() -> None:
    plain, elastic = ((EXAMPLES / name).read_text().splitlines() for name in ("plain.py", "train.py"))
    added = [line for line in elastic if line.strip() not in {p.strip() for p in plain}]
    assert len(added) <= 10
