"""Trials that are jobs, simulated: the coordinator's pure parts, the operator's, and the jobs between them."""

import copy
from typing import Any

from adaptrain.search.algorithms.registry import make_algorithm, make_pruner
from adaptrain.search.job_trials import OPERATOR, TrialJobs
from adaptrain.search.scheduler import TrialScheduler
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.study import TrialRecord
from adaptrain_api.contracts.coordinator_api import Progress, SearchProgress, TrialOrder, TrialReports
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.search.status import ArchitectureSearchStatus, OwnJob
from adaptrain_operator.core import naming
from adaptrain_operator.core.search.observed import Search, SearchObserved
from adaptrain_operator.core.search.reconcile import SearchPlan, decide_search

from tests.unit.api.test_api_rules import PHASE

NOW = 1_800_000_000.0
WIDTH = "model.args.width"
ORDER = TrialOrder(number=3, given={"architecture": [0], "why": {"by": "random"}}, parameters={WIDTH: 8})


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "space": {"parameters": [{"name": WIDTH, "values": list(range(8, 72))}]},
        "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
        "algorithm": {"name": "random"},
        "budget": {"trials": 12},
        "parallelism": {"max": 3},
        "execution": "Jobs",
        "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE], "workers": {"max": 4}},
        **spec,
    }


def recorded(status: ArchitectureSearchStatus, made: dict[str, Any]) -> ArchitectureSearchStatus:
    """The status after the operator has made these jobs."""
    record = {one.name: one.uid for one in status.jobs} | {name: job["metadata"]["uid"] for name, job in made.items()}
    return status.model_copy(update={"jobs": [OwnJob(name=name, uid=uid) for name, uid in record.items()]})


class Cluster:
    """A search and its jobs, as they would be after each plan was carried out."""

    def __init__(self, **spec: Any) -> None:
        self.spec = manifest(**spec)
        self.status = ArchitectureSearchStatus()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        self.progress: SearchProgress | None = None
        self.heard: dict[str, Progress] = {}
        self.refused: dict[str, str] = {}
        self.current = True

    def plan(self) -> SearchPlan:
        spec = ArchitectureSearchSpec.model_validate(self.spec)
        search = Search("digits", "ns", "uid", 1, False, spec, self.status)
        jobs = copy.deepcopy(self.jobs)
        return decide_search(
            search, SearchObserved(jobs, self.progress, self.current, None, self.heard, self.refused), NOW
        )

    def carry_out(self, plan: SearchPlan, most: int = 1000) -> None:
        """As much of it as somebody does who is killed after so many requests."""
        for job in plan.apply[:most]:
            name = job["metadata"]["name"]
            if name not in self.jobs:
                self.made.append(name)
            before = self.jobs.get(name, {"status": {}, "metadata": {"uid": f"{name} of {len(self.made)}"}})
            metadata = {**job["metadata"], "uid": before["metadata"]["uid"]}
            self.jobs[name] = {**job, "metadata": metadata, "status": before["status"]}
        for one in plan.delete[: max(0, most - len(plan.apply))]:
            if self.jobs.get(one.name, {"metadata": {"uid": None}})["metadata"]["uid"] == one.uid:
                del self.jobs[one.name]
        self.status = plan.status
        if most >= len(plan.apply) + len(plan.delete):
            made = [job["metadata"]["name"] for job in plan.apply]
            self.status = recorded(self.status, {name: self.jobs[name] for name in made if name in self.jobs})

    def settle(self) -> SearchPlan:
        for _ in range(4):
            plan = self.plan()
            self.carry_out(plan)
        assert not plan.apply
        return plan

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        return {name: job for name, job in self.jobs.items() if naming.TRIAL in job["metadata"]["labels"]}

    def end(self, name: str, type: str, metrics: dict[str, float] | None = None, message: str = "") -> None:
        condition = {
            "type": type,
            "status": "True",
            "reason": "X",
            "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        self.jobs[name]["status"] = {"conditions": [condition], "metrics": metrics or {}}

    def says(self, type: str) -> tuple[str, str]:
        (one,) = (one for one in self.status.conditions if one.type == type)
        return one.reason, one.message


class Study:
    """A coordinator's pure parts, and what it has written."""

    def __init__(self, cluster: Cluster, history: list[TrialRecord]) -> None:
        spec = ArchitectureSearchSpec.model_validate(cluster.spec)
        space = make_space(spec.space)
        self.searcher = make_algorithm(spec, space)
        self.dispatch = TrialScheduler(
            spec, self.searcher, make_pruner(spec.pruning), list(history), [], returning=True
        )
        self.jobs = TrialJobs(self.dispatch, space, spec.parallelism.max)
        self.history = history
        self.unwritten: list[TrialRecord] = []

    def order(self, now: float) -> bool:
        if (number := self.jobs.next(now)) is None:
            return False
        return self.dispatch.give(OPERATOR, number, self.searcher.ask(number, self.dispatch.tried), now) is not None

    def hear(self, said: TrialReports, now: float) -> SearchProgress:
        self.unwritten += self.jobs.hear(TrialReports.model_validate_json(said.model_dump_json()), now)
        d, unwritten = self.dispatch, {one.number for one in self.unwritten}
        found = SearchProgress(
            complete=len(d.ended) - len(d.failed) - d.pruned,
            failed=len(d.failed),
            pruned=d.pruned,
            end=None if unwritten else d.verdict(now),
            orders=self.jobs.orders(),
            done=self.jobs.done(unwritten),
        )
        return SearchProgress.model_validate_json(found.model_dump_json())

    def write(self) -> None:
        self.history += self.unwritten
        self.unwritten = []
