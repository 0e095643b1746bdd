"""Pods that run and take no part: each has a deadline."""

from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_operator.core.job.coordinator import START_SECONDS
from adaptrain_operator.core.job.workers import RETURN_SECONDS

from tests.support.operator_world import World

ALLOWED = 100


def without(world: World, uid: str, joining: bool, preparing: bool) -> Progress:
    assert world.progress is not None
    members = [member for member in world.progress.members if member.id != uid]
    here = [uid] if joining or preparing else []
    said = {"members": members, "joining": here, "preparing": here if preparing else [], "silent": []}
    return world.progress.model_copy(update=said)


def pass_time(world: World, uid: str, seconds: float, joining: bool = False, preparing: bool = False) -> None:
    """The worker says nothing, or has said hello and nothing more, or that it prepares; all others take part."""
    end = world.now + seconds
    while world.now < end:
        world.now += 1
        world.answer()
        world.progress = without(world, uid, joining, preparing)
        world.carry_out(world.decide())
        world.start()


def three_workers() -> World:
    world = World(workers={"min": 1, "max": 3, "replicas": 3, "startDeadlineSeconds": ALLOWED})
    world.settle()
    world.answer()
    world.step()
    return world


def test_a_worker_that_hangs_before_its_first_hello_is_replaced() -> None:
    world = three_workers()
    name = sorted(world.active())[1]
    uid = world.pods[name]["metadata"]["uid"]
    pass_time(world, uid, ALLOWED - 5)
    assert name in world.active()
    pass_time(world, uid, 10)
    assert name not in world.active()
    assert len(world.active()) == 3


def test_a_worker_that_hangs_as_its_coordinator_is_lost_is_replaced_soon() -> None:
    world = three_workers()
    world.now += 10 * ALLOWED
    world.answer()
    world.step()
    name = sorted(world.active())[1]
    uid = world.pods[name]["metadata"]["uid"]
    world.end(next(pod for pod in world.pods if "coordinator" in pod), code=137, message="killed")
    pass_time(world, uid, RETURN_SECONDS - 5)
    assert world.status.coordinator == 2
    assert name in world.active(), "it may be on its way back to the new coordinator"
    pass_time(world, uid, 10)
    assert name not in world.active()
    assert len(world.active()) == 3


def test_a_worker_that_the_coordinator_knows_is_the_coordinators_to_judge() -> None:
    world = three_workers()
    name = sorted(world.active())[1]
    pass_time(world, world.pods[name]["metadata"]["uid"], 3 * ALLOWED, joining=True)
    assert name in world.active()


def test_a_worker_that_never_ends_its_preparations_is_replaced_and_costs_nobody_anything() -> None:
    world = three_workers()
    name = sorted(world.active())[1]
    uid = world.pods[name]["metadata"]["uid"]
    pass_time(world, uid, ALLOWED - 5, preparing=True)
    assert name in world.active()
    ready = {condition.type: condition for condition in world.status.conditions}["PodsReady"]
    assert (ready.status, ready.reason) == ("False", "WorkersStarting")
    assert f"worker {name.rpartition('-')[2]} prepares since" in ready.message
    pass_time(world, uid, 10, preparing=True)
    assert name not in world.active()
    assert len(world.active()) == 3
    assert not world.status.restarts


def test_no_worker_is_missed_by_a_coordinator_that_cannot_be_asked() -> None:
    world = three_workers()
    world.progress = None
    for _ in range(3 * ALLOWED):
        world.now += 1
        world.carry_out(world.decide())
    assert len(world.active()) == 3
    assert world.made.count("job-worker-3") == 0


def test_a_coordinator_that_hangs_before_it_is_ready_is_replaced() -> None:
    world = World()
    world.step()
    world.start()
    name = next(pod for pod in world.pods if "coordinator" in pod)
    for container in world.pods[name]["status"]["containerStatuses"]:
        container["ready"] = False
    for _ in range(int(START_SECONDS) - 5):
        world.now += 1
        world.carry_out(world.decide())
    assert world.status.coordinator == 1
    for _ in range(10):
        world.now += 1
        world.carry_out(world.decide())
    assert world.status.coordinator == 2
