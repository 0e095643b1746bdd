"""Workers that fail before they have trained: a job's first ones, and those of a template that was changed."""

from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Claim, Problem

from tests.support.operator_world import Object, World, make_spec, stamp


def change(world: World, **spec: Any) -> None:
    world.spec, world.generation = make_spec(**spec), world.generation + 1


def image_of(pod: Object) -> str:
    return str(next(one["image"] for one in pod["spec"]["containers"] if one["name"] in ("worker", "coordinator")))


def fail_all(world: World, image: str, code: int = 1, message: str = "KeyError: 'cosin'", **rest: Any) -> None:
    """What is made of an image starts, fails, and nothing else happens."""
    for name in world.active():
        if image_of(world.pods[name]) == image and world.pods[name]["status"]["phase"] == "Pending":
            world.start(name)
            world.end(name, code, message=message, **rest)


def pass_time(world: World, seconds: int, image: str, **how: Any) -> None:
    for _ in range(seconds):
        world.now += 1
        fail_all(world, image, **how)
        world.answer()
        world.step()


@pytest.mark.parametrize("code", [1, 2, EXIT_INVALID, 137])
def test_a_bad_template_costs_a_healthy_job_nothing(code: int) -> None:
    world = World(maxRestarts=1, podFailurePolicy={"rules": [rule("Count", 137), rule("FailJob", 2)]})
    world.settle()
    before = world.active()
    change(
        world, maxRestarts=1, image="trainer:typo", podFailurePolicy={"rules": [rule("Count", 137), rule("FailJob", 2)]}
    )
    pass_time(world, 1200, "trainer:typo", code=code)
    assert world.status.phase == "Running"
    assert [name for name in world.active() if image_of(world.pods[name]) == "trainer:1"] == before
    assert not world.status.restarts
    assert world.status.coordinator == 1
    assert len(world.made) <= 3 + 3, "it stops"
    status, reason, message = world.condition("Rescaling")
    assert (status, reason) == ("True", "RolloutStopped")
    assert "2 workers are still of the old template" in message
    assert "KeyError: 'cosin'" in message
    # It goes no further, and may be taken back or changed again at any time.
    change(world, maxRestarts=1)
    for _ in range(5):
        world.now += 30
        world.settle()
    assert world.active() == before
    assert world.condition("Rescaling")[0] == "False"
    change(world, maxRestarts=1, image="trainer:2")
    for _ in range(10):
        world.settle()
        world.now += 1
    assert {image_of(pod) for pod in world.pods.values() if pod["metadata"]["name"] not in world.ended} == {"trainer:2"}
    assert not world.status.restarts


def rule(action: str, code: int) -> Object:
    return {"action": action, "onExitCodes": {"operator": "In", "values": [code]}}


def test_a_template_that_joins_and_fails_in_its_first_step_costs_nothing_either() -> None:
    world = World(maxRestarts=1)
    world.settle()
    before = world.active()
    change(world, maxRestarts=1, image="trainer:typo")
    for _ in range(20):
        world.now += 5
        for name in world.active():
            if name not in before:
                world.start(name)
                world.answer()
                world.untrained = {world.pods[name]["metadata"]["uid"]}
                world.answer()
                world.step()
                assert set(before) <= set(world.active()), "none leaves before its successor has trained"
                world.end(name, 1)
        world.answer()
        world.step()
    assert world.status.phase == "Running"
    assert world.condition("Rescaling")[1] == "RolloutStopped"
    assert world.active() == before


def test_workers_lost_while_a_bad_template_is_tried_do_not_end_the_job() -> None:
    """All that can be made then is of the bad one: it is tried ever more seldom, and the job waits to be mended."""
    world = World(maxRestarts=1)
    world.settle()
    change(world, maxRestarts=1, image="trainer:typo")
    pass_time(world, 60, "trainer:typo")
    for name in world.active():
        del world.pods[name]
    made = len(world.made)
    pass_time(world, 1200, "trainer:typo")
    assert world.condition("Failed")[0] != "True"
    assert len(world.made) - made <= 60
    assert world.condition("Rescaling")[1] == "RolloutStopped"
    change(world, maxRestarts=1)
    for _ in range(5):
        world.now += 61
        world.settle()
    assert len(world.active()) == 2
    assert world.status.phase == "Running"


def test_without_room_a_bad_template_costs_one_worker_at_most() -> None:
    workers = {"min": 1, "replicas": 3}
    world = World(workers=workers)
    world.settle()
    world.room = 4
    change(world, workers=workers, image="trainer:typo")
    for _ in range(400):
        world.now += 1
        running = [name for name in world.active() if world.pods[name]["status"]["phase"] == "Running"]
        if len(running) < 3:
            fail_all(world, "trainer:typo")
        world.answer()
        world.step()
        for name in [name for name, pod in world.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del world.pods[name]
        old = [name for name in world.active() if image_of(world.pods[name]) == "trainer:1"]
        assert len(old) >= 2
    assert world.condition("Rescaling")[1] == "RolloutStopped"


def test_a_coordinator_that_is_lost_while_an_image_is_on_trial_comes_back_with_the_proved_one() -> None:
    world = World()
    world.settle()
    change(world, image="trainer:typo")
    pass_time(world, 60, "trainer:typo")
    del world.pods["job-coordinator-1"]
    world.step()
    assert image_of(world.pods["job-coordinator-2"]) == "trainer:1"
    world.start("job-coordinator-2")
    pass_time(world, 60, "trainer:typo")
    assert world.status.coordinator == 2, "it stays while the trial lasts"
    change(world, image="trainer:2")
    for _ in range(10):
        world.settle()
        world.now += 1
    assert image_of(world.pods["job-coordinator-3"]) == "trainer:2"
    assert world.status.coordinator == 3


def test_an_image_that_cannot_be_pulled_stops_the_rollout() -> None:
    world = World()
    world.settle()
    change(world, image="trainer:missing")
    world.step()
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    status = {"name": "worker", "state": {"waiting": waiting}}
    world.pods["job-worker-2"]["spec"]["nodeName"] = "a"
    world.pods["job-worker-2"]["status"] = {"phase": "Pending", "containerStatuses": [status]}
    for _ in range(20):
        world.now += 60
        world.answer()
        plan = world.step()
        assert (plan.delete, plan.create) == ([], [])
    status, reason, message = world.condition("Rescaling")
    assert (status, reason) == ("True", "RolloutStopped")
    assert "trainer:missing" in message


@pytest.mark.parametrize("unavailable", [0, 1])
@pytest.mark.parametrize(
    "words",
    [
        "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode"
        " already in-use by another pod. no new claims to deallocate,",
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available",
    ],
)
def test_one_worker_where_there_is_room_for_one(words: str, unavailable: int) -> None:
    checkpoint = {"volume": {"persistentVolumeClaim": {"claimName": "c"}}}
    workers = {"min": 1, "max": 1, "replicas": 1, "rollingUpdate": {"maxUnavailable": unavailable}}
    world = World(workers=workers, checkpoint=checkpoint)
    world.settle()
    world.room = 2
    change(world, workers=workers, checkpoint=checkpoint, image="trainer:2")
    for _ in range(10):
        world.now += 20
        world.answer()
        world.step()
        world.start()
        for name, pod in list(world.pods.items()):
            if "deletionTimestamp" in pod["metadata"]:
                del world.pods[name]
            elif pod["status"]["phase"] == "Pending":
                scheduled = {"type": "PodScheduled", "status": "False", "message": words}
                pod["status"] = {"phase": "Pending", "conditions": [scheduled]}
    images = {image_of(world.pods[name]) for name in world.active() if name in world.pods}
    status, reason, message = world.condition("Rescaling")
    if unavailable:
        assert images == {"trainer:2"}
        assert status == "False"
    else:
        assert "trainer:1" in images
        assert (status, reason) == ("True", "NoRoomToReplace")
        assert "workers.rollingUpdate.maxUnavailable" in message


def test_asked_to_leave_first_no_more_leave_at_once_than_may() -> None:
    workers = {"min": 4, "max": 4, "replicas": 4, "rollingUpdate": {"maxUnavailable": 2}}
    world = World(workers=workers)
    world.settle()
    change(world, workers=workers, image="trainer:2")
    for _ in range(30):
        world.now += 1
        world.answer()
        world.step()
        for name in [name for name, pod in world.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del world.pods[name]
        running = [name for name in world.active() if world.pods[name]["status"]["phase"] == "Running"]
        assert len(running) >= 2
        assert len(world.active()) <= 4
        if world.now % 3 < 1:
            world.start()
    assert {image_of(world.pods[name]) for name in world.active()} == {"trainer:2"}


def never_trained(**spec: Any) -> World:
    world = World(**spec)
    world.step()
    return world


def start_and_fail(world: World, times: int, message: str, joins: bool = False) -> int:
    """Workers that fail as soon as they start. Returns how often they did."""
    failed = 0
    for _ in range(times * 40):
        world.now += 2
        world.start(naming.coordinator_pod("job", world.status.coordinator or 0))
        fresh = [name for name in world.active() if world.pods[name]["status"]["phase"] == "Pending"]
        if fresh:
            world.start()
            if joins:
                world.untrained = {world.pods[name]["metadata"]["uid"] for name in fresh}
                world.answer(step=0)
                world.step()
            for name in fresh:
                world.end(name, 1, message=message.format(failed))
            failed += 1
        world.answer(step=0)
        world.step()
        if world.status.phase == "Failed" or failed == times:
            break
    world.step()
    return failed


@pytest.mark.parametrize("joins", [False, True])
def test_the_same_error_on_every_start_ends_the_job_soon(joins: bool) -> None:
    world = never_trained(maxRestarts=10)
    words = "Traceback\n  File 0x7f{0}\nModuleNotFoundError: No module named 'nosuchmodule' (pid {0})"
    assert start_and_fail(world, 12, words, joins) == 3
    status, reason, message = world.condition("Failed")
    assert (status, reason) == ("True", "StartFailed")
    assert "nosuchmodule" in message


def test_errors_that_differ_are_tried_again() -> None:
    world = never_trained(maxRestarts=5)
    words = iter(["cat", "dog", "cow", "hen", "fox", "owl", "elk"])
    for _ in range(6):
        start_and_fail(world, 1, f"OSError: {next(words)}")
    assert world.condition("Failed")[1] == "TooManyFailures"
    assert world.status.restarts == 6


def test_what_the_user_wants_counted_is_only_counted() -> None:
    world = never_trained(maxRestarts=5, podFailurePolicy={"rules": [rule("Count", 1)]})
    assert start_and_fail(world, 12, "no licence server") == 6
    assert world.condition("Failed")[1] == "TooManyFailures"


def test_a_job_that_has_trained_is_tried_to_the_end() -> None:
    world = World(maxRestarts=5)
    world.settle()
    failed = 0
    while world.status.phase != "Failed":
        world.now += 20
        failed += bool(world.active())
        for name in world.active():
            world.end(name, 1, message="CUDA error")
        world.settle()
    assert failed == 6
    assert world.condition("Failed")[1] == "TooManyFailures"


def test_a_mended_template_begins_anew() -> None:
    world = never_trained(maxRestarts=10)
    start_and_fail(world, 2, "NameError: x")
    change(world, maxRestarts=10, image="trainer:2")
    start_and_fail(world, 2, "NameError: x")
    assert world.condition("Failed")[0] != "True"


def test_what_an_init_container_waits_for_may_come() -> None:
    world = never_trained(maxRestarts=5)
    for _ in range(400):
        world.now += 2
        for name in world.active():
            ended = {"exitCode": 1, "message": "script.source.git.url can't be read", "finishedAt": stamp(world.now)}
            world.pods[name]["status"] = {
                "phase": "Failed",
                "initContainerStatuses": [{"name": "source", "state": {"terminated": ended}}],
            }
        world.step()
    assert world.condition("Failed")[1] == "TooManyFailures"
    assert world.status.restarts == 6


@pytest.mark.parametrize("what", ["selector", "forbidden", "claim"])
def test_what_no_leaving_worker_cures_costs_none(what: str) -> None:
    workers = {"min": 1, "replicas": 3}
    claim = {"checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "gone"}}}} if what == "claim" else {}
    world = World(workers=workers)
    world.settle()
    before = world.active()
    change(world, workers={**workers, "nodeSelector": {"zone": "x"}}, **claim)
    if what == "claim":
        world.claim = Claim(False)
    for _ in range(60):
        world.now += 5
        if what == "forbidden":
            world.problem = Problem("PodForbidden", "violates PodSecurity", world.now - 100, world.now + 10)
        world.answer()
        world.step()
        for pod in world.pods.values():
            if pod["status"]["phase"] == "Pending":
                said = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector"
                scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
                pod["status"] = {"phase": "Pending", "conditions": [scheduled]}
        assert set(before) <= set(world.active())
    status, reason, message = world.condition("Rescaling")
    assert status == "True"
    assert reason == "RolloutStopped"
    assert {"selector": "affinity/selector", "forbidden": "PodSecurity", "claim": '"gone"'}[what] in message
