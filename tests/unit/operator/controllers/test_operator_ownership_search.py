"""What a search makes is what its uid controls: a pool, a trial's job and a winner's, of any name's earlier owner."""

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import Progress, SearchEnd, SearchProgress, TrialOrder, TrialResult
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects import ownership
from adaptrain_operator.kube.kinds import JOB, SEARCH

from tests.support.api_server import NAMESPACE, Site, site
from tests.unit.api.test_api_rules import PHASE
from tests.unit.operator.controllers.test_operator_ownership import SPEC

Object = dict[str, Any]
KIND = SEARCH.name
DEAD = naming.owner("digits", "uid-of-an-earlier-search", KIND)
OWNERS: dict[str, list[Object]] = {
    "nobody's": [],
    "another's": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u", "controller": True}],
    "another search's": [naming.owner("other", "uid-of-another-search", KIND)],
    "a dead search's": [DEAD],
}
SEARCHED: Object = {
    "space": {"parameters": [{"name": "model.args.width", "values": [8, 16]}]},
    "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
    "budget": {"trials": 10},
    "parallelism": {"max": 3},
    "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE]},
    "promote": {"job": {"workers": {"max": 2}, "data": {"name": "digits"}, "phases": [PHASE]}},
}
AS_JOBS: Object = {
    **SEARCHED,
    "execution": "Jobs",
    "trial": {**SEARCHED["trial"], "workers": {"max": 1}},
}
WINNER = TrialResult(
    trial=4, metrics={"val/accuracy": 0.98}, choices='{"model.args.width":16}', parameters={"model.args.width": 16},
    model={"name": "mlp", "args": {"width": 16}},
)  # fmt: skip
END = SearchEnd(outcome="complete", reason="SearchComplete", message="10 trials ended")
ENDED = Progress(number=1, search=SearchProgress(complete=10, top=[WINNER], pareto_size=1, per_minute=1.0, end=END))
ORDERED = Progress(number=1, search=SearchProgress(orders=[TrialOrder(number=0, given={"architecture": [0]})]))
NAMES = {"digits-pool": None, "digits-trial-0": ORDERED, "digits-winner": ENDED}


def _there(at: Site, name: str, whose: str) -> Object:
    meta = {"name": name, "ownerReferences": OWNERS[whose], "labels": {"team": "payments"}}
    job = {"apiVersion": naming.API_VERSION, "kind": JOB.name, "metadata": meta, "spec": {**SPEC, "suspend": True}}
    return deepcopy(at.api.put(JOB, job | {"status": {}}))


async def _begin(at: Site, name: str) -> None:
    at.submit_search(**(AS_JOBS if "trial" in name else SEARCHED))
    if name != "digits-pool":
        await at.search()
        said = NAMES[name]
        assert said is not None
        at.contacts.says[NAMESPACE, "digits-pool"] = said


@pytest.mark.parametrize("late", [False, True], ids=["seen", "not seen yet"])
@pytest.mark.parametrize("whose", OWNERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_is_not_the_search_s_is_left_as_it_is(name: str, whose: str, late: bool) -> None:
    async def check() -> None:
        async with site() as at:
            await _begin(at, name)
            if late:
                await at.see()
            theirs = _there(at, name, whose)
            if late:
                # Made between our look and our request.
                with pytest.raises(Exception, match="AlreadyExists"):
                    await at.searches.reconcile((NAMESPACE, "digits"))
            await at.search()
            assert at.api.get(JOB, name) == theirs
            search = at.api.get(SEARCH, "digits")
            assert search is not None
            assert name not in [one["name"] for one in search["status"].get("jobs", [])]
            told = str(search["status"].get("conditions"))
            dead = whose == "a dead search's"
            if name != "digits-trial-0":
                assert (ownership.LEAVING if dead else "NameTaken") in told
                assert f'AdaptiveTrainingJob "{name}"' in told
            if not dead:
                return
            # The garbage collector removes it, and the search goes on.
            at.api.remove(JOB, name)
            await at.search(times=3)
            made = at.api.get(JOB, name)
            assert made is not None
            assert ownership.controlled(made, search["metadata"]["uid"])

    asyncio.run(check())


def test_a_pool_comes_back_deleted_or_edited() -> None:
    async def check() -> None:
        async with site() as at:
            await _begin(at, "digits-pool")
            await at.search()
            made = deepcopy(at.api.get(JOB, "digits-pool"))
            assert made is not None
            at.api.change(JOB, "digits-pool", spec={**made["spec"], "maxRestarts": 77, "image": "other:1"})
            await at.search()
            mended = at.api.get(JOB, "digits-pool")
            assert mended is not None
            assert mended["spec"] == made["spec"]
            before = len(at.api.writes())
            await at.search()
            assert len(at.api.writes()) == before
            at.api.remove(JOB, "digits-pool")
            await at.search(times=3)
            again = at.api.get(JOB, "digits-pool")
            assert again is not None
            assert again["spec"] == made["spec"]

    asyncio.run(check())


def test_a_status_is_not_written_on_another_search_of_the_name() -> None:
    async def check() -> None:
        async with site() as at:
            at.submit_search(**SEARCHED)
            await at.search()
            at.contacts.says[NAMESPACE, "digits-pool"] = ENDED
            await at.see()
            at.api.remove(SEARCH, "digits")
            successor = deepcopy(at.submit_search(**SEARCHED))
            with pytest.raises(Exception, match="UID"):
                await at.searches.reconcile((NAMESPACE, "digits"))
            assert at.api.get(SEARCH, "digits") == successor

    asyncio.run(check())
