"""A search's jobs are those that the operator made and wrote down; labels and owners are anybody's to write."""

from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import SearchEnd, SearchProgress, TrialResult
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_operator.core import naming
from adaptrain_operator.core.search.observed import Search, SearchObserved
from adaptrain_operator.core.search.reconcile import decide_search_anyhow

from tests.support.trial_job_world import ORDER, Cluster
from tests.unit.operator.core.test_operator_search import BEST, DONE
from tests.unit.operator.core.test_operator_search import World as SearchWorld

END = SearchEnd(outcome="complete", reason="SearchComplete", message="done")
COMPLETE = {
    "type": "Complete",
    "status": "True",
    "reason": "r",
    "message": "m",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


def forged(name: str, number: str, controller: bool = True) -> dict[str, Any]:
    """A job of a tenant's own that looks like a trial that came out best."""
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": "forged",
            "labels": {naming.SEARCH_NAME: "digits", naming.TRIAL: number},
            "annotations": {naming.GIVEN: '{"architecture":[0,0],"why":{}}'},
            "ownerReferences": [{"uid": "uid", "kind": "ArchitectureSearch", "controller": controller}],
        },
        "spec": {},
        "status": {"phase": "Succeeded", "metrics": {"best/val/accuracy": 0.99999}, "conditions": [COMPLETE]},
    }


@pytest.mark.parametrize("number", ["7", "3", "abc", "-1", "9" * 400, ""])
@pytest.mark.parametrize("name", ["friendly", "digits-trial-7", "digits-trial-x", "digits-trial-03"])
@pytest.mark.parametrize("controller", [False, True])
def test_what_looks_like_a_trial_is_none(name: str, number: str, controller: bool) -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.jobs[name] = forged(name, number, controller)
    plan = cluster.plan()
    assert plan.reports is not None
    assert [(report.number, report.state) for report in plan.reports.trials] == [(3, "running")]
    assert not plan.delete
    assert not plan.apply


def test_a_trial_that_another_job_of_its_name_replaced_is_no_longer_its_own() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.jobs["digits-trial-3"] = forged("digits-trial-3", "3")
    plan = cluster.plan()
    assert plan.reports is not None
    assert plan.reports.trials == []
    assert [one.uid for one in plan.delete] == ["forged"], "it says that it is the search's, and is not"
    cluster.carry_out(plan)
    cluster.settle()
    assert cluster.jobs["digits-trial-3"]["metadata"]["uid"] != "forged"


def test_what_was_made_just_before_the_operator_was_killed_is_made_anew() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.status = cluster.status.model_copy(
        update={"jobs": [one for one in cluster.status.jobs if one.name != "digits-trial-3"]}
    )
    before = cluster.jobs["digits-trial-3"]["metadata"]["uid"]
    cluster.carry_out(cluster.plan())
    cluster.settle()
    assert cluster.jobs["digits-trial-3"]["metadata"]["uid"] != before
    assert len(cluster.trials) == 1


def test_an_operator_of_before_kept_no_record_and_its_jobs_stay() -> None:
    cluster = Cluster()
    cluster.progress = SearchProgress(orders=[ORDER])
    cluster.settle()
    cluster.status = cluster.status.model_copy(update={"jobs": []})
    plan = cluster.plan()
    assert not plan.delete
    assert {one.name for one in plan.status.jobs} == {"digits-pool", "digits-trial-3"}


def test_a_pool_that_the_operator_did_not_make_says_nothing() -> None:
    world = SearchWorld()
    world.jobs["digits-pool"] = forged("digits-pool", "0")
    world.jobs["digits-pool"]["status"] = {"phase": "Running", "readyReplicas": 3}
    plan = world.decide()
    assert [one.uid for one in plan.delete] == ["forged"]
    assert world.status.phase == "Pending"
    world.settle()
    assert [one.name for one in world.status.jobs] == ["digits-pool"]


def test_a_forged_winner_is_not_what_is_promoted() -> None:
    world = SearchWorld(promote={"job": {"workers": {"max": 2}}})
    world.settle()
    world.progress = DONE
    world.jobs["digits-winner"] = forged("digits-winner", "0")
    world.decide()
    assert world.status.phase != "Succeeded"
    assert "digits-winner" not in world.jobs
    world.settle()
    assert world.status.phase == "Succeeded"
    assert world.jobs["digits-winner"]["metadata"]["uid"] != "forged"


@pytest.mark.parametrize(
    "said",
    [
        SearchProgress(complete=10, top=[], end=END),
        SearchProgress(complete=10, top=[BEST.model_copy(update={"metrics": {}})], end=END),
        SearchProgress(complete=3, top=[TrialResult(trial=1, metrics={"x": 1.0}, choices="no json")] * 100),
    ],
)
def test_odd_words_of_a_searchs_coordinator_stop_nothing(said: SearchProgress) -> None:
    world = SearchWorld(promote={"job": {"workers": {"max": 2}}, "gate": {"metric": "val/accuracy", "atLeast": 0.5}})
    world.settle()
    world.progress = said
    world.settle()
    assert len(world.status.top) <= 10
    world.change(suspend=True)
    world.settle()
    assert world.paused


def test_a_search_is_decided_without_progress_that_a_decision_stumbles_over() -> None:
    world = SearchWorld(suspend=True)
    odd = SearchProgress.model_construct(complete="many")
    spec = ArchitectureSearchSpec.model_validate(world.spec)
    search = Search("digits", "ns", "uid", 1, False, spec, ArchitectureSearchStatus())
    plan = decide_search_anyhow(search, SearchObserved({}, odd), 1_800_000_000.0)
    assert plan.apply[0]["spec"]["suspend"]


def test_who_deletes_the_pool_and_forges_another_gains_nothing() -> None:
    world = SearchWorld()
    world.settle()
    world.jobs["digits-pool"] = forged("digits-pool", "0")
    for _ in range(3):
        world.decide()
    assert world.jobs["digits-pool"]["metadata"]["uid"] != "forged"
    assert "forged" not in {one.uid for one in world.status.jobs}
