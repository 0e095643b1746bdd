"""Workers and coordinators that are silent or lost, with their nodes or without."""

import pytest
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects import pods
from adaptrain_operator.core.observed import Lease, Node

from tests.support.operator_world import World, stamp


def test_a_silent_worker_is_dropped_and_its_node_avoided(world: World) -> None:
    world.now += 60
    world.pods["job-worker-0"]["spec"]["nodeName"] = "b"
    world.silent = {"uid-job-worker-0": world.now - 3}
    world.answer()
    plan = world.step()
    assert [(deletion.name, deletion.grace) for deletion in plan.delete] == [("job-worker-0", 0)]
    [pod] = plan.create
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms["nodeSelectorTerms"] == [
        {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["b"]}]}
    ]
    assert [node.name for node in world.status.avoided_nodes] == ["b"]
    assert "b" in plan.suspects
    # Until its Lease is renewed after the silence.
    world.leases = {"b": Lease(world.now - 8, world.now, world.now)}
    assert [node.name for node in world.step().status.avoided_nodes] == ["b"]
    world.leases = {"b": Lease(world.now + 1, world.now + 1.1, world.now + 1.1, watched=True)}
    world.now += 2
    world.answer()
    plan = world.step()
    assert plan.status.avoided_nodes == []
    # It waits for a place that it would now have: it is made anew.
    assert [deletion.name for deletion in plan.delete] == ["job-worker-2"]
    assert "affinity" not in world.pods["job-worker-3"]["spec"]


def test_the_users_affinity_is_kept_where_a_node_is_avoided() -> None:
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone, zone]}}
    world = World(workers={"affinity": {"nodeAffinity": required, "podAffinity": {"some": "thing"}}})
    pod = pods.worker_pod(world.job, 0, "i", ["b", "a"])
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(terms["nodeSelectorTerms"]) == 2
    for term in terms["nodeSelectorTerms"]:
        assert term["matchExpressions"] == zone["matchExpressions"]
        assert [one["values"] for one in term["matchFields"]] == [["a"], ["b"]]
    assert pod["spec"]["affinity"]["podAffinity"] == {"some": "thing"}


def test_a_worker_on_a_lost_node_that_the_new_coordinator_never_met(world: World) -> None:
    world.now += 60
    for name, node in (("job-worker-0", "b"), ("job-worker-1", "a")):
        world.pods[name]["spec"]["nodeName"] = node
    world.leases = {"b": Lease(world.now - 20, world.now - 13, world.now)}
    world.answer()
    world.progress = world.progress and world.progress.model_copy(
        update={"members": [one for one in world.progress.members if one.id == "uid-job-worker-1"]}
    )
    plan = world.step()
    assert [(deletion.name, deletion.grace) for deletion in plan.delete] == [("job-worker-0", 0)]
    assert len(plan.create) == 1
    assert [node.name for node in plan.status.avoided_nodes] == ["b"]


def test_a_node_that_is_lost_before_its_coordinators_first_word_is_noticed(world: World) -> None:
    """No event tells of it, so the plan must ask for another look."""
    world.end("job-coordinator-1", 137, "Error", "")
    world.step()
    world.start("job-coordinator-2", node="b")
    world.answered, world.asked = None, world.now
    plan = world.step()
    assert "b" not in plan.suspects
    assert plan.requeue_after is not None
    assert plan.requeue_after < 3
    world.now += plan.requeue_after
    plan = world.step()
    assert "b" in plan.suspects


def test_a_glance_at_an_old_lease_is_no_verdict(world: World) -> None:
    world.pods["job-worker-0"]["spec"]["nodeName"] = "b"
    world.leases = {"b": Lease(world.now - 100, world.now, world.now)}
    world.silent = {}
    world.members = set()
    world.progress = world.progress and world.progress.model_copy(update={"members": []})
    assert world.step().delete == []


@pytest.mark.parametrize("case", ["gone", "deleting", "failed", "killed", "node", "lease", "unreachable"])
def test_a_coordinator_is_replaced(world: World, case: str) -> None:
    world.now += 60
    world.answer()
    pod = world.pods["job-coordinator-1"]
    pod["spec"]["nodeName"] = "c"
    match case:
        case "gone":
            del world.pods["job-coordinator-1"]
        case "deleting":
            pod["metadata"] |= {"deletionTimestamp": stamp(world.now + 2), "deletionGracePeriodSeconds": 2}
        case "failed":
            world.end("job-coordinator-1", 1)
        case "killed":
            world.end("job-coordinator-1", 137)
        case "node":
            world.answered = world.now - 6
            world.nodes = {"a": Node("a"), "b": Node("b"), "c": Node("c", ready=False)}
        case "lease":
            world.answered = world.now - 6
            world.leases = {"c": Lease(world.now - 15, world.now - 13, world.now)}
        case "unreachable":
            world.lost_since = world.now - 8.1
    plan = world.step()
    assert plan.status.coordinator == 2
    assert [pod["metadata"]["name"] for pod in plan.create] == ["job-coordinator-2"]
    [service] = [child for child in plan.apply if child["kind"] == "Service"]
    assert service["spec"]["selector"][naming.COORDINATOR_NUMBER] == "2"
    assert all(deletion.grace == 0 for deletion in plan.delete)
    assert "job-coordinator-1" not in world.pods or case == "failed"
    assert len(world.active()) == 2


def test_a_coordinator_that_was_kept_away_from_nodes_is_made_anew_when_they_are_back(world: World) -> None:
    world.now += 60
    for name, pod in world.pods.items():
        pod["spec"]["nodeName"] = "c" if name == "job-coordinator-1" else "a"
    world.answered = world.now - 6
    world.leases = {"c": Lease(world.now - 15, world.now - 13, world.now)}
    world.step()
    assert "affinity" in world.pods["job-coordinator-2"]["spec"]
    world.now += 10
    assert world.step().create == [], "it waits for the node"
    world.leases = {"c": Lease(world.now, world.now, world.now, watched=True)}
    world.step()
    assert "job-coordinator-2" not in world.pods
    affinity = world.pods["job-coordinator-3"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in affinity


@pytest.mark.parametrize("case", ["never reached", "short", "cut off", "late lease"])
def test_a_coordinator_is_kept(world: World, case: str) -> None:
    world.now += 60
    match case:
        case "late lease":
            world.answer()
            world.pods["job-coordinator-1"]["spec"]["nodeName"] = "c"
            world.leases = {"c": Lease(world.now - 15, world.now - 13, world.now)}
        case "never reached":
            world.answered, world.progress, world.lost_since = None, None, None
        case "short":
            world.lost_since = world.now - 5
        case "cut off":
            world.lost_since, world.cut_off = world.now - 60, True
    plan = world.step()
    assert plan.create == []
    assert plan.status.coordinator == 1


@pytest.mark.parametrize("state", ["waiting", "forming", "running"])
def test_a_coordinator_that_knows_no_step_yet_does_not_take_the_last_one_back(world: World, state: str) -> None:
    world.answer(state=state, step=0)
    world.step()
    assert world.status.step == 10


def test_a_coordinator_that_fails_again_and_again_is_slowed_down(world: World) -> None:
    made = 0
    for _ in range(100):
        world.now += 1
        world.step()
        world.start()
        current = f"job-coordinator-{world.status.coordinator}"
        if current in world.pods and world.pods[current]["status"]["phase"] == "Running":
            made += 1
            world.end(current, 1)
    assert 2 <= made <= 12
    coordinators = [name for name in world.pods if "coordinator" in name]
    assert len(coordinators) <= 4
