"""Nodes that are about to go: autoscalers taint them, and wait for the job's disruption budget."""

from typing import Any

import pytest
from adaptrain_operator.core.observed import Claim, Node

from tests.support.operator_world import Object, World

REMOVING = [
    {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"},
    {"key": "karpenter.sh/disruption", "value": "disrupting", "effect": "NoSchedule"},
    {"key": "ToBeDeletedByClusterAutoscaler", "value": "1800000000", "effect": "NoSchedule"},
    {"key": "DeletionCandidateOfClusterAutoscaler", "value": "1800000000", "effect": "PreferNoSchedule"},
    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
    {"key": "aws-node-termination-handler/spot-itn", "value": "1", "effect": "NoSchedule"},
    {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"},
    {"key": "maintenance", "value": "tonight", "effect": "NoExecute"},
]
EVERYTHING = [{"operator": "Exists"}]


def node(name: str, *taints: Object, **spec: Any) -> Node:
    return Node.read({"metadata": {"name": name}, "spec": {"taints": list(taints), **spec}})


class DrainedWorld(World):
    """The scheduler keeps to affinities and taints; a drainer evicts what the disruption budget lets go."""

    def place(self) -> None:
        for pod in self.pods.values():
            if pod["status"]["phase"] != "Pending":
                continue
            if (found := next((one for one in sorted(self.nodes or {}) if self._fits(pod, one)), None)) is not None:
                self.start(pod["metadata"]["name"], node=found)

    def _fits(self, pod: Object, name: str) -> bool:
        node_affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
        required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
        kept_away = {
            value
            for term in required.get("nodeSelectorTerms", [])
            for field in term.get("matchFields", [])
            for value in field["values"]
        }
        assert self.nodes is not None
        hard = any(taint.effect != "PreferNoSchedule" for taint in self.nodes[name].taints)
        tolerant = {"operator": "Exists"} in pod["spec"]["tolerations"]
        return name not in kept_away and (tolerant or not hard)

    def evict(self, name: str) -> bool:
        """Ask for a pod's eviction; whether the budget allows it."""
        budget = self.children["PodDisruptionBudget", "job-workers"]["spec"]["minAvailable"]
        if len([one for one in self.active() if self.pods[one]["status"]["phase"] == "Running"]) <= budget:
            return False
        del self.pods[name]
        return True

    def run(self, seconds: int = 60) -> int:
        """The fewest members that there were meanwhile."""
        fewest = len(self.members)
        for _ in range(seconds):
            self.step()
            for name in [name for name, pod in self.pods.items() if "deletionTimestamp" in pod["metadata"]]:
                del self.pods[name]
            self.place()
            self.answer()
            self.now += 1
            fewest = min(fewest, len(self.members))
        return fewest


def on(world: World) -> list[str]:
    return sorted(world.pods[name]["spec"].get("nodeName", "") for name in world.active())


def drained(*taints: Object, **spec: Any) -> DrainedWorld:
    world = DrainedWorld(**spec)
    world.nodes = {"a": node("a"), "b": node("b")}
    world.settle(start=False)
    world.start(node="a")
    world.answer()
    world.settle()
    world.nodes["a"] = node("a", *taints)
    return world


@pytest.mark.parametrize(
    ("taint", "tolerations"),
    # Who tolerates a taint of their own making for ever is not evicted for it.
    [(taint, []) for taint in REMOVING] + [(taint, EVERYTHING) for taint in REMOVING[:-1]],
)
def test_a_job_at_min_lets_a_tainted_node_go(taint: Object, tolerations: list[Object]) -> None:
    world = drained(taint, workers={"min": 2, "replicas": 2, "tolerations": tolerations})
    assert on(world) == ["a", "a"]
    assert not world.evict("job-worker-0"), "the disruption budget holds the drain up"
    world.step()
    assert world.condition("Rescaling")[1] == "NodeLeaving"
    assert taint["key"] in world.condition("Rescaling")[2]
    assert world.run() == 2, "a successor takes part before a worker leaves"
    assert on(world) == ["b", "b"]
    assert world.condition("Rescaling")[0] == "False"
    assert len([name for name in world.made if "worker" in name]) == 4, "one successor each"


@pytest.mark.parametrize(
    ("taint", "tolerations"),
    [
        ({"key": "maintenance", "value": "tonight", "effect": "NoExecute"}, EVERYTHING),
        (
            {"key": "maintenance", "value": "tonight", "effect": "NoExecute"},
            [{"key": "maintenance", "value": "tonight"}],
        ),
        ({"key": "gpu", "effect": "NoSchedule"}, []),
        ({"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}, []),
        ({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}, []),
    ],
)
def test_other_taints_move_nobody(taint: Object, tolerations: list[Object]) -> None:
    world = drained(taint, workers={"min": 2, "replicas": 2, "tolerations": tolerations})
    made = len(world.made)
    world.run(20)
    assert (on(world), len(world.made)) == (["a", "a"], made)


def test_a_taint_that_is_tolerated_for_a_while_moves_workers_before_it_evicts_them() -> None:
    taint = {"key": "maintenance", "effect": "NoExecute"}
    toleration = {"key": "maintenance", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    world = drained(taint, workers={"min": 1, "replicas": 1, "tolerations": [toleration]})
    assert world.run() == 1
    assert on(world) == ["b"]


def test_above_min_the_drain_evicts_by_itself() -> None:
    world = drained(REMOVING[0], workers={"min": 1, "replicas": 2})
    assert world.step().create == []
    assert world.evict("job-worker-0")
    world.run()
    assert on(world)[-1] == "b"


def test_a_node_that_stays_after_all_gets_pods_again() -> None:
    world = drained(REMOVING[3], workers={"min": 2, "replicas": 2})
    world.nodes = {"a": world.nodes["a"]} if world.nodes else None  # there is no other
    world.run(10)
    assert on(world) == ["", "a", "a"], "the successor waits for a place"
    world.nodes = {"a": node("a")}
    world.run(10)
    assert on(world) == ["a", "a"]


def test_a_drain_during_a_rollout_moves_the_workers_of_the_node_first() -> None:
    world = drained(workers={"min": 2, "replicas": 2})
    world.pods["job-worker-1"]["spec"]["nodeName"] = "b"
    assert world.nodes is not None
    world.nodes["b"] = node("b", REMOVING[0])
    env = [{"name": "LEVEL", "value": "2"}]
    world.spec = DrainedWorld(workers={"min": 2, "replicas": 2, "env": env}).spec
    world.generation = 2
    first = next(
        plan.delete for plan in (world.step() for _ in range(9)) if world.place() or world.answer() or plan.delete
    )
    assert [deletion.name for deletion in first] == ["job-worker-1"]
    assert world.run() == 2


@pytest.mark.parametrize(("taint", "moves"), [(REMOVING[0], True), (REMOVING[4], False)])
def test_who_holds_a_claim_of_one_node_leaves_before_its_successor(taint: Object, moves: bool) -> None:
    claim = {"volume": {"persistentVolumeClaim": {"claimName": "data"}}}
    world = drained(workers={"min": 1, "max": 1, "replicas": 1}, checkpoint=claim)
    world.claim = Claim(True, ("ReadWriteOnce",))
    assert world.nodes is not None
    world.nodes["a"] = node("a", taint)
    plan = world.step()
    # A cordon alone may be all that its author wants: training goes on.
    assert [deletion.name for deletion in plan.delete] == ["job-worker-0"] * moves
    world.run(10)
    assert on(world) == (["b"] if moves else ["a"])
    assert len(world.active()) == 1
