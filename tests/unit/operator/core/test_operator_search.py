"""What the operator does for a search: pure decisions."""

import copy
from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import SearchEnd, SearchProgress, TrialResult
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_api.training.job import TrainingJobSpec, dump
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_operator.core.objects.pods import worker_pod
from adaptrain_operator.core.observed import Claim, Job
from adaptrain_operator.core.search.observed import Search, SearchObserved
from adaptrain_operator.core.search.reconcile import SearchPlan, decide_search

from tests.support.operator_world import World as JobWorld
from tests.support.trial_job_world import recorded
from tests.unit.api.test_api_rules import PHASE

NOW = 1_800_000_000.0
END = SearchEnd(outcome="complete", reason="SearchComplete", message="10 trials ended: the budget is used up")
BEST = TrialResult(
    trial=4,
    metrics={"val/accuracy": 0.98},
    choices='{"model.args.width":16}',
    parameters={"model.args.width": 16},
)
DONE = SearchProgress(complete=9, failed=1, top=[BEST], pareto_size=1, per_minute=30.0, end=END)


class World:
    """A search and its jobs, as they would be after each plan was carried out."""

    def __init__(self, **spec: Any) -> None:
        base: dict[str, Any] = {
            "space": {"parameters": [{"name": "model.args.width", "values": [8, 16]}]},
            "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
            "budget": {"trials": 10},
            "parallelism": {"max": 3},
            "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE]},
        }
        self.spec = base | spec
        self.status = ArchitectureSearchStatus()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.generation = 1
        self.progress: SearchProgress | None = None
        self.current = True
        self.eta: float | None = None
        self.now = NOW

    def change(self, **spec: Any) -> None:
        self.spec |= spec
        self.generation += 1

    def decide(self) -> SearchPlan:
        """Decide once, and carry it out."""
        search = Search(
            "digits",
            "ns",
            "uid",
            self.generation,
            False,
            ArchitectureSearchSpec.model_validate(self.spec),
            ArchitectureSearchStatus.model_validate(dump(self.status)),
        )
        seen = SearchObserved(copy.deepcopy(self.jobs), self.progress, self.current, self.eta)
        plan = decide_search(search, seen, self.now)
        self.status = plan.status
        for job in plan.apply:
            name = job["metadata"]["name"]
            before = self.jobs.get(name, {"status": {}})
            made = {**job["metadata"], "uid": f"uid of {name}"}
            self.jobs[name] = {**job, "metadata": made, "status": before["status"]}
            self.status = recorded(self.status, {name: self.jobs[name]})
        for one in plan.delete:
            self.jobs.pop(one.name, None)
        return plan

    def settle(self) -> SearchPlan:
        """Decide until nothing more is done."""
        for _ in range(5):
            plan = self.decide()
            if not plan.apply:
                return plan
        raise AssertionError("it is never content")

    @property
    def paused(self) -> bool:
        """There are no evaluators."""
        return bool(self.jobs["digits-pool"]["spec"]["suspend"])

    def says(self, type: str) -> tuple[str, str, str]:
        (one,) = (one for one in self.status.conditions if one.type == type)
        return one.status, one.reason, one.message


def test_evaluators_are_the_workers_of_a_job() -> None:
    world = World(evaluators={"resources": {"limits": {"nvidia.com/gpu": 1}}}, seed=5, image="a:b")
    world.settle()
    pool = world.jobs["digits-pool"]
    assert pool["spec"]["workers"]["replicas"] == 3
    assert pool["spec"]["workers"]["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert pool["spec"]["image"] == "a:b"
    assert pool["spec"]["search"]["spec"]["seed"] == 5
    assert (
        pool["metadata"]["ownerReferences"][0] | {"kind": "ArchitectureSearch", "uid": "uid"}
        == (pool["metadata"]["ownerReferences"][0])
    )
    assert world.status.phase == "Pending"


def test_progress_is_told() -> None:
    world = World()
    world.progress = SearchProgress(complete=4, running=3, top=[BEST], pareto_size=1, per_minute=12.0)
    world.eta = 30.0
    world.settle()
    assert world.status.progress == "4/10"
    assert world.status.best == "val/accuracy=0.98"
    assert world.status.eta == "30s"
    assert [one.trial for one in world.status.top] == [4]
    world.progress = SearchProgress()
    world.settle()
    assert world.status.progress == "4/10", "a coordinator that has just started knows less"


@pytest.mark.parametrize(
    ("type", "ill", "well"),
    [
        ("StudyWritable", {"storage_error": "the study can't be written: no space"}, {}),
        ("SpaceUsed", {"unread": "none of 10 trials looked at lr"}, {"unread": ""}),
        ("SupernetTrained", {"supernet": "trial 0 trains the network that all cells share: 3 of 5 passes"}, {}),
    ],
)
def test_what_is_wrong_is_told_until_it_is_well(type: str, ill: dict[str, Any], well: dict[str, Any]) -> None:
    world = World()
    world.settle()

    def condition() -> tuple[str, str] | None:
        return next(((c.status, c.message) for c in world.status.conditions if c.type == type), None)

    assert condition() is None
    world.progress = SearchProgress(running=1, **ill)
    world.settle()
    assert condition() == ("False", *ill.values())
    world.progress = SearchProgress(running=1, **well)
    world.settle()
    found = condition()
    assert found is not None
    assert found[0] == "True"


def test_evaluators_that_find_nothing_to_try_leave() -> None:
    world = World(parallelism={"min": 2, "max": 3})

    def workers() -> tuple[int, int, int]:
        found = world.jobs["digits-pool"]["spec"]["workers"]
        return found["min"], found["replicas"], found["max"]

    def hear(evaluators: int | None, current: bool = True) -> tuple[int, int, int]:
        world.progress, world.current = SearchProgress(complete=8, evaluators=evaluators), current
        world.settle()
        return workers()

    world.settle()
    assert workers() == (2, 3, 3)
    assert hear(2) == (2, 2, 3)
    assert hear(1) == (1, 1, 3), "the disruption budget asks for no more than are wanted"
    assert world.status.evaluators == "0/1"
    assert hear(None) == (1, 1, 3), "one that takes over doesn't know who has a trial"
    assert hear(3, current=False) == (1, 1, 3), "nor does one that is gone"
    assert hear(0) == (1, 1, 3), "somebody has to hear of the end"
    world.change(budget={"trials": 20})
    world.progress = None
    world.settle()
    assert workers() == (2, 3, 3), "there is more to try"


def test_the_end_removes_the_evaluators_and_keeps_the_result() -> None:
    world = World()
    world.settle()
    world.progress = DONE
    world.settle()
    assert world.paused
    assert world.status.phase == "Succeeded"
    assert world.says("Complete")[1] == "SearchComplete"
    world.progress = None
    world.settle()
    assert world.status.progress == "10/10"


def test_a_larger_budget_lets_it_go_on() -> None:
    world = World()
    world.settle()
    world.progress = DONE
    world.settle()
    world.change(parallelism={"max": 1})
    world.settle()
    assert world.paused, "nothing is left to try"
    world.change(budget={"trials": 12})
    world.progress = None
    world.settle()
    assert world.jobs["digits-pool"]["spec"]["search"]["spec"]["budget"] == {"trials": 12}
    assert not world.paused
    assert world.says("Complete")[:2] == ("False", "BudgetRaised")
    assert world.status.completion_time is None


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (None, ""),
        ({"atLeast": 0.98}, ""),
        ({"atLeast": 0.99}, "has val/accuracy 0.98, and the gate wants at least 0.99: nothing was created"),
        ({"atMost": 0.97}, "and the gate wants at most 0.97: nothing was created"),
        ({"betterThan": "rival"}, ""),
        ({"betterThan": "champion"}, "not better than 0.99 of champion: nothing was created"),
        ({"betterThan": "nobody"}, "compares with val/accuracy of the job nobody, which has left none"),
        ({"metric": "f1", "atLeast": 0}, "reported no f1, which the gate names; it reported val/accuracy"),
    ],
)
def test_who_passes_the_gate_is_promoted(gate: dict[str, Any] | None, words: str) -> None:
    promote: dict[str, Any] = {"job": {"workers": {"min": 2, "max": 2}}}
    if gate is not None:
        promote["gate"] = {"metric": "val/accuracy"} | gate
    world = World(promote=promote)
    for name, value in (("rival", 0.9), ("champion", 0.99)):
        model = {"path": "p", "metric": "val/accuracy", "value": value, "step": 1}
        world.jobs[name] = {"metadata": {"name": name}, "status": {"model": model}}
    world.progress = DONE
    world.settle()
    status, _, message = world.says("Promoted")
    assert (status, "digits-winner" in world.jobs) == (("False", False) if words else ("True", True))
    assert words in message
    if not words:
        spec = world.jobs["digits-winner"]["spec"]
        assert spec["model"] == {"name": "mlp", "args": {"width": 16}}
        assert spec["workers"] == {"min": 2, "max": 2}
        assert world.status.promoted_job == "digits-winner"


def test_a_strangers_job_of_the_winners_name_is_left_alone() -> None:
    world = World(promote={"job": {"workers": {"min": 2, "max": 2}}})
    world.jobs["digits-winner"] = {"metadata": {"name": "digits-winner"}, "spec": {}, "status": {}}
    world.progress = DONE
    world.settle()
    assert world.jobs["digits-winner"]["spec"] == {}
    status, reason, message = world.says("Promoted")
    assert (status, reason) == ("False", "NameTaken")
    assert 'AdaptiveTrainingJob "digits-winner" was not made by this search' in message
    assert world.status.phase == "Succeeded"


def test_a_second_winner_does_not_change_the_first_ones_job() -> None:
    world = World(promote={"job": {"workers": {"min": 2, "max": 2}}})
    world.settle()
    world.progress = DONE
    world.settle()
    before = copy.deepcopy(world.jobs["digits-winner"])
    world.change(budget={"trials": 11})
    better = TrialResult(trial=10, metrics={"val/accuracy": 0.99}, choices="{}", parameters={"model.args.width": 8})
    world.progress = SearchProgress(complete=10, failed=1, top=[better, BEST], end=END)
    world.settle()
    assert world.jobs["digits-winner"] == before
    assert world.says("Promoted")[:2] == ("False", "EarlierWinner")
    assert world.status.promoted_job == "digits-winner", "that one is still its job"


def test_the_same_winner_is_promoted_once() -> None:
    """The operator may die after it made the job and before it could say so."""
    world = World(promote={"job": {"workers": {"min": 2, "max": 2}}})
    world.progress = DONE
    before = world.status
    world.decide()
    world.status = before
    plan = world.settle()
    assert world.says("Promoted")[:2] == ("True", "JobCreated")
    assert not [job for job in plan.apply if job["metadata"]["name"] == "digits-winner"]


def test_a_template_that_is_no_job_creates_nothing() -> None:
    world = World(promote={"job": {"workers": {"min": 0}}})
    world.progress = DONE
    world.settle()
    assert "digits-winner" not in world.jobs
    assert world.says("Promoted")[1] == "InvalidJob"
    assert "promote.job: with the winner in it, workers.min" in world.says("Promoted")[2]


def test_suspension_keeps_the_pool_without_workers() -> None:
    world = World()
    world.settle()
    world.change(suspend=True)
    world.settle()
    assert world.jobs["digits-pool"]["spec"]["suspend"] is True
    assert world.status.phase == "Suspended"
    world.change(suspend=False, parallelism={"max": 0})
    world.settle()
    assert world.jobs["digits-pool"]["spec"]["suspend"] is True
    assert world.says("PodsReady")[1:] == ("NoEvaluators", "parallelism.max is 0: raise it to go on")


def test_what_ends_the_pool_ends_the_search() -> None:
    world = World()
    world.settle()
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "InvalidManifest",
        "message": "space.args.depth: unknown",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    world.jobs["digits-pool"]["status"] = {"conditions": [failed]}
    world.settle()
    assert world.status.phase == "Failed"
    assert world.says("Failed")[1:] == ("InvalidManifest", "space.args.depth: unknown")
    assert world.paused


def test_a_name_that_is_taken_is_said() -> None:
    world = World()
    world.jobs["digits-pool"] = {"metadata": {"name": "digits-pool", "ownerReferences": []}, "spec": {}, "status": {}}
    plan = world.decide()
    assert not plan.apply
    assert world.says("PodsReady")[1] == "NameTaken"


def test_deadlines_and_time_to_live() -> None:
    world = World(activeDeadlineSeconds=100, ttlSecondsAfterFinished=50)
    world.settle()
    world.now += 99
    world.settle()
    assert world.status.phase != "Failed"
    world.now += 2
    world.settle()
    assert world.says("Failed")[1] == "DeadlineExceeded"
    assert world.paused
    world.now += 49
    assert not world.settle().remove
    world.now += 2
    assert world.settle().remove


VOLUME = {"persistentVolumeClaim": {"claimName": "studies"}}
LEFT = {"path": "trials/4-0123456789abcdef.safetensors", "sha256": "01" * 32}


@pytest.mark.parametrize(
    ("promote", "storage", "starts"),
    [
        ({}, {"volume": VOLUME}, True),
        ({"weights": False}, {"volume": VOLUME}, False),
        ({}, {"postgresql": {"name": "database"}}, False),
        ({"job": {"model": {"name": "mlp", "args": {"depth": 3}}}}, {"volume": VOLUME}, False),
    ],
)
def test_the_winner_starts_from_its_trials_weights(
    promote: dict[str, Any], storage: dict[str, Any], starts: bool
) -> None:
    world = World(promote={"job": {}} | promote, storage=storage)
    best = TrialResult.model_validate({**BEST.model_dump(), "weights": LEFT})
    world.progress = DONE.model_copy(update={"top": [best]})
    world.settle()
    found = world.jobs["digits-winner"]["spec"].get("initialWeights")
    wanted = {"volume": VOLUME, "path": f"ns.digits-pool/{LEFT['path']}", "sha256": LEFT["sha256"]}
    assert found == (wanted if starts else None)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"storage": {"volume": VOLUME}}, ", from random weights: the trial's own could not be written"),
        ({}, ""),
        ({"storage": {"volume": VOLUME}, "promote": {"job": {"model": {"name": "mlp"}}}}, ""),
        ({"storage": {"volume": VOLUME}, "promote": {"job": {}, "weights": False}}, ""),
    ],
)
def test_a_winner_without_the_weights_that_it_should_have_says_so(spec: dict[str, Any], words: str) -> None:
    world = World(**{"promote": {"job": {}}, **spec})
    world.progress = DONE
    world.settle()
    status, reason, message = world.says("Promoted")
    assert (status, reason) == ("True", "JobCreated")
    assert message.startswith(f"trial 4 is trained by the job digits-winner{words}")
    assert ("random weights" in message) == bool(words)


def test_other_weights_to_start_from_are_the_users_choice() -> None:
    own = {"volume": VOLUME, "path": "pretrained.safetensors"}
    world = World(promote={"job": {"initialWeights": own}}, storage={"volume": VOLUME})
    best = TrialResult.model_validate({**BEST.model_dump(), "weights": LEFT})
    world.progress = DONE.model_copy(update={"top": [best]})
    world.settle()
    assert world.jobs["digits-winner"]["spec"]["initialWeights"] == own


ONE_SHOT: dict[str, Any] = {
    "algorithm": {"name": "spos"},
    "space": {"name": "darts"},
    "trial": {"data": {"name": "digits"}, "phases": [PHASE]},
}


@pytest.mark.parametrize(
    ("fields", "leaves"),
    [
        ({}, False),
        ({"promote": {"job": {}}}, True),
        ({"promote": {"job": {}, "weights": False}}, False),
        (ONE_SHOT, True),
    ],
)
def test_evaluators_mount_the_study_if_they_leave_weights(fields: dict[str, Any], leaves: bool) -> None:
    job = Job("digits-pool", "ns", "uid", 1, NOW, False, _pool(**fields), TrainingJobStatus())
    pod = worker_pod(job, 0, "image", ())
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    assert env.get("ADAPTRAIN_CHECKPOINT_DIR") == ("/adaptrain/checkpoint/ns.digits-pool" if leaves else None)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, None),
        ({"promote": {"job": {}}}, "or set parallelism.max to 1, or promote.weights to false"),
        (ONE_SHOT | {"promote": {"job": {}}}, "or set parallelism.max to 1"),
    ],
)
def test_a_claim_of_one_pod_is_refused_if_several_evaluators_mount_it(
    fields: dict[str, Any], remedy: str | None
) -> None:
    world = JobWorld()
    world.spec, world.claim = _pool(**fields), Claim(True, ("ReadWriteOncePod",))
    world.step()
    status, reason, message = world.condition("PodsReady")
    assert (reason == "ClaimOfOnePod") is (remedy is not None)
    assert remedy is None or (status == "False" and message.endswith(remedy))


def test_the_study_and_evaluators_share_the_only_node_that_can_mount_their_claim() -> None:
    world = JobWorld()
    world.spec, world.claim = _pool(**ONE_SHOT), Claim(True, ("ReadWriteOnce",))
    world.settle()
    affinities = [pod["spec"]["affinity"]["podAffinity"] for pod in world.pods.values()]
    assert len(affinities) > 1
    assert all(one == affinities[0] for one in affinities)


def _pool(**fields: Any) -> TrainingJobSpec:
    world = World(storage={"volume": VOLUME}, **fields)
    world.settle()
    return TrainingJobSpec.model_validate(world.jobs["digits-pool"]["spec"])
