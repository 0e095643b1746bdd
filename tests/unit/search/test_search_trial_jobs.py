"""Trials that are jobs: the coordinator's side and the operator's, together and each by itself."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from adaptrain.rpc.client import NotOurs, ask
from adaptrain.search.coordinator import SearchCoordinator
from adaptrain.search.study.study import TrialRecord
from adaptrain_api.contracts.coordinator_api import Progress, SearchEnd, SearchProgress, TrialReport, TrialReports
from adaptrain_api.contracts.proof import Caller
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_operator.core import naming
from adaptrain_operator.core.search.reconcile import SearchPlan

from tests.support.trial_job_world import ORDER, Cluster, Study, manifest


@pytest.mark.parametrize("seed", range(30))
def test_every_trial_counts_once_whoever_is_killed_when(seed: int) -> None:
    """Any order of decisions half carried out, answers lost, coordinators killed, jobs ending, failing and deleted."""
    chance = random.Random(seed)
    cluster, history = Cluster(seed=seed, budget={"trials": 12}, maxFailedTrials=12), list[TrialRecord]()
    study = Study(cluster, history)
    said: TrialReports | None = None
    found: dict[int, dict[str, float]] = {}
    for step in range(5000):
        alive = [
            name for name, job in cluster.trials.items() if not job["status"] and not job["spec"].get("suspend", False)
        ]
        assert len(alive) <= 3
        match chance.choice(["decide"] * 4 + ["pull"] * 4 + ["order"] * 2 + ["end"] * 2 + ["write", "other"]):
            case "decide":
                plan = cluster.plan()
                killed = chance.random() < 0.2
                cluster.carry_out(plan, chance.randrange(3) if killed else 1000)
                said = said if killed else plan.reports
            case "pull" if said is not None:
                answer = study.hear(said, step)
                if chance.random() < 0.8:
                    cluster.progress = answer
            case "order":
                study.order(step)
            case "write":
                study.write()
            case "end" if alive:
                name = chance.choice(alive)
                if chance.random() < 0.2:
                    cluster.end(name, "Failed", message="it broke")
                else:
                    width = cluster.jobs[name]["spec"]["model"]["args"]["width"]
                    cluster.end(name, "Complete", {"val/accuracy": 0.1, "best/val/accuracy": width / 100})
            case "other" if chance.random() < 0.3:
                study = Study(cluster, history)  # what it had not written is told to the next one
            case "other" if alive and chance.random() < 0.3:
                del cluster.jobs[chance.choice(alive)]  # somebody's doing: it is made again
            case "other":
                cluster.spec["suspend"] = not cluster.spec.get("suspend", False)
        if cluster.progress is not None and cluster.progress.end is not None:
            break
        if step > 4000:
            cluster.spec.pop("suspend", None)
    cluster.spec.pop("suspend", None)
    cluster.settle()
    assert sorted(one.number for one in history) == list(range(12))
    assert len({one.architecture for one in history}) == 12
    for one in history:
        if one.state == "complete":
            found[one.number] = one.metrics
            assert one.metrics["val/accuracy"] == (one.architecture[0] + 8) / 100, "of its own architecture"
    assert not cluster.trials, "nothing is left behind"
    assert cluster.status.phase == "Succeeded"


def test_an_order_becomes_a_job() -> None:
    cluster = Cluster(image="a:b", seed=7, trial=manifest()["trial"] | {"timeoutSeconds": 60})
    cluster.progress = SearchProgress(orders=[ORDER])
    plan = cluster.settle()
    made = cluster.jobs["digits-trial-3"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid"
    assert made["metadata"]["labels"][naming.TRIAL] == "3"
    spec = made["spec"]
    assert spec["model"] == {"name": "mlp", "args": {"width": 8}}
    assert (spec["workers"]["max"], spec["seed"], spec["image"], spec["activeDeadlineSeconds"]) == (4, 7, "a:b", 60)
    assert plan.reports is not None
    (report,) = plan.reports.trials
    assert (report.number, report.given, report.state) == (3, ORDER.given, "running")


def test_the_pool_has_no_workers() -> None:
    cluster = Cluster()
    cluster.settle()
    assert AdaptiveTrainingJob.model_validate(cluster.jobs["digits-pool"]).spec.wanted_workers == 0
    cluster.spec |= {"execution": "Pool", "trial": {**cluster.spec["trial"], "workers": None}}
    cluster.settle()
    assert AdaptiveTrainingJob.model_validate(cluster.jobs["digits-pool"]).spec.wanted_workers == 3


def test_what_runs_is_told_from_its_coordinator_and_what_ended_from_its_status() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.heard["digits-trial-3"] = Progress(number=1, data_epoch=4, metrics={"val/accuracy": 0.5})
    reports = cluster.settle().reports
    assert reports is not None
    assert reports.trials[0].metrics == {}, "the coordinator of an earlier job of this name may have said it"
    cluster.jobs["digits-trial-3"]["status"]["coordinator"] = 1
    reports = cluster.settle().reports
    assert reports is not None
    assert (reports.trials[0].step, reports.trials[0].metrics) == (4, {"val/accuracy": 0.5})
    cluster.end("digits-trial-3", "Complete", {"val/accuracy": 0.5, "test/accuracy": 0.4, "best/val/accuracy": 0.6})
    reports = cluster.settle().reports
    assert reports is not None
    assert (reports.trials[0].state, reports.trials[0].metrics) == (
        "complete",
        {"val/accuracy": 0.6, "test/accuracy": 0.4},
    )
    assert cluster.trials, "nobody has said that it is written"


def test_a_failed_trials_last_message_outlives_its_job() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.end("digits-trial-3", "Failed", message="CUDA is out of memory")
    cluster.progress = SearchProgress(done=[cluster.jobs["digits-trial-3"]["metadata"]["uid"]])
    plan = cluster.plan()
    cluster.carry_out(plan)
    assert not cluster.trials
    assert failures(plan) == ["trial 3 failed: CUDA is out of memory"]


def failures(plan: SearchPlan) -> list[str]:
    return [one.message for one in plan.events if one.reason == "TrialFailed"]


def test_a_failure_is_told_once_however_long_its_job_takes_to_go() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.end("digits-trial-3", "Failed", message="it broke")
    assert not failures(cluster.plan()), "nobody has taken it in yet"
    cluster.progress = SearchProgress(done=[cluster.jobs["digits-trial-3"]["metadata"]["uid"]])
    assert failures(cluster.plan()) == ["trial 3 failed: it broke"]
    cluster.jobs["digits-trial-3"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for _ in range(3):
        plan = cluster.plan()
        assert not failures(plan)
        assert not plan.delete
    end = SearchEnd(outcome="failed", reason="TooManyFailedTrials", message="one too many")
    cluster.progress = SearchProgress(failed=1, end=end)
    assert not failures(cluster.plan())


def test_the_failure_that_ends_the_search_is_told_too() -> None:
    cluster = Cluster(maxFailedTrials=0)
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.end("digits-trial-3", "Failed", message="it broke")
    end = SearchEnd(outcome="failed", reason="TooManyFailedTrials", message="one too many")
    cluster.progress = SearchProgress(failed=1, end=end)
    plan = cluster.plan()
    assert failures(plan) == ["trial 3 failed: it broke"]
    cluster.carry_out(plan)
    assert not failures(cluster.plan())


def test_a_job_that_is_made_again_is_not_judged_by_what_the_old_one_said() -> None:
    """Somebody deletes a trial's job: the new one of its name begins at its first epoch."""
    cluster = Cluster(pruning={"name": "median", "args": {"start": 2}})
    study = Study(cluster, [])
    study.jobs.hear(TrialReports(), 0)
    while study.order(0):
        pass
    orders = study.jobs.orders()

    def say(job: str, step: int, value: float, state: Any = "running", others: float = 0.5) -> SearchProgress:
        reports = [
            TrialReport(number=one.number, given=one.given, job=f"job {n}", step=step, metrics={"val/accuracy": others})
            for n, one in enumerate(orders[:2])
        ]
        last = orders[2]
        reports.append(
            TrialReport(
                number=last.number,
                given=last.given,
                job=job,
                step=step,
                metrics={"val/accuracy": value},
                state=state,
                message="it broke",
                started=float(step),
            )
        )
        return study.hear(TrialReports(trials=reports), step)

    say("old", 1, 0.9)
    say("old", 2, 0.9)
    steps = study.dispatch.pending[orders[2].number].steps
    assert steps == {1: 0.9, 2: 0.9}
    assert say("new", 1, 0.6).pruned == 0
    assert steps == {1: 0.6}
    assert say("old", 3, 0.9, "failed").failed == 0, "another operator speaks of what is no more"
    assert steps == {1: 0.6}
    assert study.dispatch.pending[orders[2].number].given == 1.0, "its time began anew"
    say("new", 4, 0.55, others=0.8)
    assert say("new", 5, 0.55, others=0.9).pruned == 1, "0.9 would have saved it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"phases[0].batch.size": 0}}, "its job would be invalid: phases.0.batch.size"),
        ({"parameters": {"phases[4].batch.size": 8}}, "the trial has no such item"),
        ({"number": 1000000}, "can have 1000000 of them: start another one"),
    ],
)
def test_a_trial_that_can_be_no_job_has_failed(change: dict[str, Any], words: str) -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER.model_copy(update=change)])
    reports = cluster.settle().reports
    assert reports is not None
    (report,) = reports.trials
    assert failures(cluster.plan()) == [f"trial {report.number} failed: {report.message}"]
    cluster.current = False
    assert not failures(cluster.plan()), "who says so may have been answered already"
    assert (report.state, report.job) == ("failed", None)
    assert words in report.message
    assert not cluster.trials


def test_a_trial_whose_name_is_taken_or_refused_has_failed() -> None:
    for stranger, refused, words in (
        (
            {"metadata": {"name": "digits-trial-3", "labels": {}, "uid": "x"}, "spec": {}},
            {},
            "was not made by this search",
        ),
        (None, {"digits-trial-3": "the API server refuses its job: no"}, "refuses its job: no"),
    ):
        cluster = Cluster()
        if stranger is not None:
            cluster.jobs["digits-trial-3"] = stranger
        cluster.refused = refused
        cluster.progress = SearchProgress(orders=[ORDER])
        reports = cluster.settle().reports
        assert reports is not None
        assert words in reports.trials[0].message


def test_suspension_and_less_parallelism_suspend_the_newest_trials() -> None:
    cluster = Cluster()
    orders = [ORDER.model_copy(update={"number": n, "given": {"architecture": [n]}}) for n in (3, 9, 10)]
    cluster.progress = SearchProgress(orders=orders)
    cluster.settle()

    def suspended() -> list[bool]:
        numbered = sorted(cluster.trials.items(), key=lambda one: int(one[0].rsplit("-", 1)[1]))
        return [bool(job["spec"].get("suspend")) for _, job in numbered]

    assert suspended() == [False, False, False]
    cluster.spec["parallelism"] = {"max": 1}
    cluster.settle()
    assert suspended() == [False, True, True]
    cluster.spec["parallelism"] = {"max": 0}
    cluster.settle()
    assert suspended() == [True, True, True]
    assert cluster.says("PodsReady") == ("NoEvaluators", "parallelism.max is 0: raise it to go on")
    cluster.spec |= {"parallelism": {"max": 3}, "suspend": True}
    cluster.settle()
    assert suspended() == [True, True, True]
    assert cluster.status.phase == "Suspended"
    cluster.spec["suspend"] = False
    cluster.settle()
    assert suspended() == [False, False, False]


def test_a_spent_budget_does_not_end_what_the_operator_has_not_named_yet() -> None:
    """A coordinator that takes over may be asked before it is told of jobs that run."""
    ended = TrialRecord(0, (0,), "complete", {"val/accuracy": 0.5}, seconds=10.0, ended=10.0)
    study = Study(Cluster(budget={"seconds": 5}), [ended])
    assert study.dispatch.verdict(1000) is None
    runs = TrialReport(number=1, given={"architecture": [1], "why": {}}, job="j")
    assert study.hear(TrialReports(trials=[runs]), 1000).end is None
    told = study.hear(TrialReports(trials=[runs.model_copy(update={"state": "failed"})]), 1001)
    study.write()
    assert told.failed == 1
    assert study.hear(TrialReports(), 1002).end is not None


def test_the_end_of_the_search_removes_its_trials() -> None:
    cluster = Cluster(maxFailedTrials=0)
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    assert cluster.trials
    study = Study(cluster, [])
    study.jobs.hear(TrialReports(), 0)
    study.order(0)
    (order,) = study.jobs.orders()
    said = TrialReport(number=order.number, given=order.given, state="failed", message="boom")
    cluster.progress = study.hear(TrialReports(trials=[said]), 1)
    study.write()
    cluster.progress = study.hear(TrialReports(), 2)
    cluster.settle()
    assert not cluster.trials
    assert "boom" in cluster.says("Failed")[1]


def test_a_hopeless_trial_is_pruned_and_heard_once_at_each_step() -> None:
    cluster = Cluster(pruning={"name": "median", "args": {"start": 2}})
    study = Study(cluster, [])
    study.jobs.hear(TrialReports(), 0)
    while study.order(0):
        pass
    orders = study.jobs.orders()
    assert len(orders) == 3

    def say(step: int, *values: float) -> SearchProgress:
        reports = [
            TrialReport(number=one.number, given=one.given, job=f"job {n}", step=step, metrics={"val/accuracy": value})
            for n, (one, value) in enumerate(zip(orders, values, strict=True))
        ]
        return study.hear(TrialReports(trials=reports), step)

    assert say(1, 0.5, 0.5, 0.4).pruned == 1
    assert say(1, 0.1, 0.1, 0.4).pruned == 1, "the same epoch is heard once"
    study.write()
    assert say(1, 0.5, 0.5, 0.4).done == ["job 2"]
    assert [one.state for one in study.history] == ["pruned"]


def test_the_operators_word_comes_with_the_token(tmp_path: Path) -> None:
    """Over HTTP: what was told is answered with the progress after that."""
    search = ArchitectureSearch.model_validate({"metadata": {"name": "digits"}, "spec": manifest()})

    def post(port: int, body: str, token: str = "secret") -> tuple[int, Any]:
        try:
            return 200, json.loads(ask(("127.0.0.1", port), Caller(token), "/trials", body.encode()))
        except NotOurs as error:
            return 0, str(error)

    async def check() -> None:
        coordinator = SearchCoordinator(1, "secret", search, tmp_path, None)
        opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serves = asyncio.create_task(coordinator.run("127.0.0.1", 0, 0, lambda _, web: opened.set_result(web)))
        port = await opened
        assert (await asyncio.to_thread(post, port, "{}", "wrong")) == (
            0,
            f"127.0.0.1:{port} does not prove that it knows the job's token",
        )
        assert "/trials: 400" in (await asyncio.to_thread(post, port, '{"trials": 5}'))[1]
        orders: list[Any] = []
        while len(orders) < 3:
            status, progress = await asyncio.to_thread(post, port, '{"trials": []}')
            assert status == 200
            orders = progress["search"]["orders"]
            await asyncio.sleep(0.1)
        said = TrialReports(
            trials=[
                TrialReport(
                    number=one["number"],
                    given=one["given"],
                    job="j",
                    state="complete",
                    metrics={"val/accuracy": 0.5},
                )
                for one in orders[:1]
            ]
        ).model_dump_json()
        found: dict[str, Any] = {}
        while found.get("done") != ["j"]:
            _, progress = await asyncio.to_thread(post, port, said)
            found = progress["search"]
            assert found["complete"] == 1
        serves.cancel()
        await asyncio.gather(serves, return_exceptions=True)

    asyncio.run(asyncio.wait_for(check(), 60))
