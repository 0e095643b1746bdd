"""How many workers there are: scaling, rolling to another template, and who leaves first."""

import dataclasses

import pytest
from adaptrain_operator.core.job.reconcile import decide
from adaptrain_operator.core.objects import pods
from adaptrain_operator.core.observed import Node

from tests.support.operator_world import T0, Object, World, make_spec


def test_scaling_in_place(world: World) -> None:
    world.spec = make_spec(workers={"replicas": 4})
    plan = world.step()
    assert [pod["metadata"]["name"] for pod in plan.create] == ["job-worker-2", "job-worker-3"]
    assert plan.delete == []
    assert world.condition("Rescaling")[:2] == ("True", "ScalingUp")
    world.settle()
    assert world.condition("Rescaling")[0] == "False"
    world.spec = make_spec(workers={"replicas": 1})
    assert [deletion.name for deletion in world.step().delete] == ["job-worker-3", "job-worker-2", "job-worker-1"]
    world.settle()
    assert world.active() == ["job-worker-0"]


def test_who_leaves_first() -> None:
    world = World(workers={"replicas": 4})
    world.settle()
    world.nodes = {"a": Node("a", cordoned=True), "b": Node("b"), "c": Node("c")}
    for name, node in zip(world.active(), "bacb", strict=True):
        world.pods[name]["spec"]["nodeName"] = node
    del world.pods["job-worker-2"]
    world.step()
    world.spec = make_spec(workers={"replicas": 2})
    assert [deletion.name for deletion in world.step().delete] == ["job-worker-4", "job-worker-1"]


def test_rolling_replaces_one_by_one_and_never_goes_below() -> None:
    world = World(workers={"replicas": 3})
    world.settle()
    world.spec = make_spec(workers={"replicas": 3, "env": [{"name": "LEVEL", "value": "2"}]})
    world.generation = 2
    fewest = 3
    for _ in range(40):
        world.step()
        world.start()
        for name in [name for name, pod in world.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del world.pods[name]
        world.answer()
        fewest = min(fewest, len(world.members))
        assert len(world.active()) <= 4
        world.now += 1
    assert fewest == 3
    assert world.active() == ["job-worker-3", "job-worker-4", "job-worker-5"]
    assert world.condition("Rescaling")[0] == "False"


def test_rolling_without_room_removes_one_first_but_not_below_min() -> None:
    for least, moves in ((1, True), (2, False)):
        world = World(workers={"min": least, "replicas": 2})
        world.settle()
        world.room = 3
        changed = {"min": least, "replicas": 2, "labels": {"jobs.adaptrain.io/team": "a"}}
        world.spec = make_spec(workers=changed)
        world.step()
        world.now += 20
        world.answer()
        assert world.step().delete == []
        world.now += 11
        world.answer()
        assert bool(world.step().delete) is moves


def test_a_bad_new_image_costs_no_worker(world: World) -> None:
    world.spec = make_spec(image="trainer:missing")
    world.step()
    pod = world.pods["job-worker-2"]
    pod["spec"]["nodeName"] = "a"
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
    for _ in range(10):
        world.now += 20
        world.answer()
        plan = world.step()
        assert (plan.delete, plan.create) == ([], [])
    assert world.condition("PodsReady")[1] == "ImagePullFailed" or world.condition("Rescaling")[0] == "True"
    assert world.status.coordinator == 1


def test_a_new_image_reaches_the_coordinator_last(world: World) -> None:
    world.spec = make_spec(image="trainer:2")
    for _ in range(10):
        world.settle()
        world.now += 1
    assert world.status.coordinator == 2
    images = {name: pod["spec"]["containers"][0]["image"] for name, pod in world.pods.items()}
    assert set(images.values()) == {"trainer:2"}
    assert world.made.index("job-coordinator-2") == len(world.made) - 1


def test_upgrading_the_operator_restarts_nothing() -> None:
    world = World(image=None)
    world.settle()
    seen = dataclasses.replace(world.observed(), default_image="default:2")
    plan = decide(world.job, seen, world.now)
    assert (plan.delete, plan.create) == ([], [])


@pytest.mark.parametrize("size", [{"min": 2}, {"max": 9}, {"replicas": 3}])
def test_size_is_not_part_of_the_template(size: Object) -> None:
    job = World().job
    other = dataclasses.replace(job, spec=make_spec(workers=size))
    assert pods.template_hash(job) == pods.template_hash(other)


def test_a_drain_at_min_gets_one_more_worker_first() -> None:
    world = World(workers={"min": 2, "replicas": 2})
    world.settle()
    world.pods["job-worker-0"]["spec"]["nodeName"] = "a"
    world.pods["job-worker-1"]["spec"]["nodeName"] = "b"
    world.nodes = {"a": Node("a", cordoned=True), "b": Node("b")}
    plan = world.step()
    assert len(plan.create) == 1
    assert plan.delete == []
    world.start("job-worker-2", node="b")
    world.answer()
    assert [deletion.name for deletion in world.step().delete] == ["job-worker-0"]


def test_of_evaluators_those_leave_that_have_no_trial() -> None:
    search = {"metadata": {"name": "s"}, "spec": {"trial": {"callable": "m:f"}}}
    world = World(model=None, data=None, phases=None, search=search, workers={"replicas": 4})
    world.settle()
    members = [
        {"id": f"uid-job-worker-{n}", "name": str(n), "step": 0, "joined": T0, "idle": n in (0, 2)} for n in range(4)
    ]
    world.spec = world.spec.model_copy(update={"workers": world.spec.workers.model_copy(update={"replicas": 2})})
    world.now += 6
    world.step()
    assert len(world.active()) == 4, "while its coordinator says nothing, nobody knows who has a trial"
    world.answer(members=members[:2], search={})
    world.step()
    assert len(world.active()) == 4, "who takes over waits for those that have one"
    world.answer(members=members, search={"evaluators": 2})
    world.step()
    assert world.active() == ["job-worker-1", "job-worker-3"]
