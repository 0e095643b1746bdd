"""Searches in local processes that are killed: the same programs that run in pods."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from adaptrain.local.processes import LocalJob
from adaptrain.local.run import Supervisor
from adaptrain_api.contracts.coordinator_api import Progress, Result
from optuna.trial import TrialState

from tests.e2e.local_jobs import job, wait_for
from tests.e2e.local_searches import ended, numbers, running, search, told


def completed(keeper: Supervisor) -> Result:
    result: Result = wait_for("the job to end", keeper.keep, keeper.local)
    return result


def test_kills_lose_no_trial_and_repeat_none(tmp_path: Path) -> None:
    chance = random.Random(0)
    kills = {"evaluator": 0, "coordinator": 0}
    trials = 60
    with running(search(budget={"trials": trials}, parallelism={"max": 3}), tmp_path) as (local, keeper):
        due = [5 + 7 * n for n in range(7)]

        def disturb(done: int) -> None:
            if due and done >= due[0]:
                due.pop(0)
                if len(due) % 3 == 1 and local.coordinator is not None:
                    local.coordinator.kill()
                    kills["coordinator"] += 1
                elif local.alive():
                    local.signal(chance.choice(local.alive()), signal.SIGKILL)
                    kills["evaluator"] += 1

        found = ended(keeper, disturb)
    assert kills["evaluator"] >= 3
    assert kills["coordinator"] >= 2
    assert found.complete == trials
    study = told(tmp_path)
    assert sorted(numbers(study)) == list(range(trials))
    assert len({tuple(trial.user_attrs["architecture"]) for trial in study}) == trials
    assert found.top[0].metrics["score"] == max(trial.value for trial in study)


@pytest.mark.parametrize("algorithm", ["auto", "evolution", "localSearch"])
def test_one_evaluator_asks_the_same_whatever_is_killed(tmp_path: Path, algorithm: str) -> None:
    one = search(budget={"trials": 25}, parallelism={"max": 1}, algorithm={"name": algorithm}, seed=3)
    with running(one, tmp_path / "calm") as (_, keeper):
        ended(keeper)
    with running(one, tmp_path / "disturbed") as (local, keeper):
        due = [4, 9, 14, 19]

        def disturb(done: int) -> None:
            if due and done >= due[0]:
                due.pop(0)
                if len(due) % 2:
                    local.signal(local.alive()[0], signal.SIGKILL)
                if local.coordinator is not None:
                    local.coordinator.kill()

        ended(keeper, disturb)
    calm, disturbed = told(tmp_path / "calm"), told(tmp_path / "disturbed")
    assert [t.params for t in calm] == [t.params for t in disturbed]
    assert numbers(disturbed) == list(range(25))


def test_a_search_goes_on_where_it_was_stopped_and_with_a_larger_budget(tmp_path: Path) -> None:
    for trials in (10, 25):
        with running(search(budget={"trials": trials}), tmp_path) as (_, keeper):
            assert ended(keeper).complete == trials
    assert sorted(numbers(told(tmp_path))) == list(range(25))


def test_evaluators_that_find_nothing_to_try_leave_and_none_with_a_trial(tmp_path: Path) -> None:
    one = search(
        budget={"trials": 7}, parallelism={"max": 3}, trial={"callable": "tests.e2e.searched:the_last_takes_long"}
    )
    with running(one, tmp_path) as (local, keeper):
        alive: list[int] = []
        found = ended(keeper, lambda _: alive.append(len(local.alive())))
        assert len(local.workers) == 3, "nobody was lost, so nobody was replaced"
        results = [local.result(number) for number in local.workers]
    assert alive[-1] == 1
    assert [one.outcome for one in results if one is not None] == ["left", "left"]
    assert found.complete == 7
    assert numbers(told(tmp_path)).count(6) == 1


WAYS = ["good", "raises", "dies", "killed", "nan", "forgets", "sleeps", "text"]
WORDS = {
    "raises": "RuntimeError: this architecture is bad",
    "dies": "its process exited with 3",
    "killed": "was killed by signal 9 (SIGKILL); memory may be short",
    "nan": "reported no finite score",
    "forgets": "reported no finite score, which objectives or constraints name; it reported other",
    "sleeps": "longer than trial.timeoutSeconds (1 s)",
    "text": "has to return a mapping with score",
}


def naughty(**spec: Any) -> Any:
    return search(
        space={"parameters": [{"name": "way", "values": WAYS}]},
        algorithm={"name": "random"},
        trial={"callable": "tests.e2e.searched:naughty", "timeoutSeconds": 1},
        **spec,
    )


def test_a_bad_trial_costs_itself_and_says_why(tmp_path: Path) -> None:
    """And a space that is used up ends the search before its budget does."""
    with running(naughty(), tmp_path) as (local, keeper):
        found = ended(keeper)
        assert len(local.workers) == 2, "no evaluator was lost"
    assert (found.complete, found.failed) == (1, len(WORDS))
    assert found.end is not None
    assert "every architecture of the space was tried" in found.end.message
    failed = {t.params["way"]: t.user_attrs["message"] for t in told(tmp_path) if t.state == TrialState.FAIL}
    assert failed.keys() == WORDS.keys()
    for way, words in WORDS.items():
        assert words in failed[way]


def test_a_dimension_that_no_trial_looks_at_is_named(tmp_path: Path) -> None:
    one = search(choices=3, budget={"trials": 12}, trial={"callable": "tests.e2e.searched:deaf"})
    with running(one, tmp_path) as (_, keeper):
        found = ended(keeper)
    assert found.unread is not None
    assert "looked at c0, c2:" in found.unread
    with running(search(budget={"trials": 12}), tmp_path / "other") as (_, keeper):
        assert ended(keeper).unread == ""


def test_too_many_bad_trials_end_the_search_with_their_last_words(tmp_path: Path) -> None:
    with running(naughty(maxFailedTrials=2), tmp_path) as (_, keeper):
        found = ended(keeper)
    assert found.end is not None
    assert (found.end.outcome, found.end.reason) == ("failed", "TooManyFailedTrials")
    last = [t for t in told(tmp_path) if t.state == TrialState.FAIL][-1]
    assert last.user_attrs["message"].strip().splitlines()[-1] in found.end.message


def test_the_best_trials_leave_their_weights_and_a_job_starts_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = {
        "name": "train",
        "type": "supervised",
        "optimizer": {"learningRate": 0.01},
        "batch": {"size": 64},
        "stop": {"epochs": 2},
    }
    trial = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [phase]}
    one = search(
        space={"parameters": [{"name": "model.args.width", "min": 16, "max": 44, "step": 2}]},
        objectives=[{"metric": "val/accuracy", "goal": "maximize"}],
        budget={"trials": 14},
        trial=trial,
    )
    with running(one, tmp_path) as (local, keeper):
        due = [4, 8]

        def disturb(done: int) -> None:
            if due and done >= due[0] and local.coordinator is not None:
                due.pop(0)
                local.coordinator.kill()

        found = ended(keeper, disturb)
    left = {path.name for path in (tmp_path / "trials").iterdir()}
    assert left == {Path(best.weights.path).name for best in found.top if best.weights is not None}
    assert len(left) == 10
    best = found.top[0]
    assert best.weights is not None

    monkeypatch.chdir(tmp_path)
    weights = {
        "volume": {"persistentVolumeClaim": {"claimName": "unused"}},
        "path": best.weights.path,
        "sha256": best.weights.sha256,
    }
    still = phase | {"optimizer": {"learningRate": 1e-9}, "stop": {"epochs": 1}}
    for processes in (1, 2):
        winner = job(
            model={"name": "mlp", "args": {"width": best.parameters["model.args.width"]}},
            phases=[still],
            initialWeights=weights,
            workers={"min": 2, "max": 2, "processesPerWorker": processes},
        )
        with LocalJob(winner, checkpoints=tmp_path / f"winner-{processes}") as local:
            result = completed(Supervisor(local, 2, 0))
            notes = [change.message for change in (local.progress() or Progress(number=0)).recent_changes]
        assert result.metrics["best/val/accuracy"] == pytest.approx(best.metrics["val/accuracy"])
        assert any(f"starts from the weights in {best.weights.path}, sha256 {best.weights.sha256}" in n for n in notes)
