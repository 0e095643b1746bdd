"""What the operator makes of pods that end: whose fault it was, what counts, and when a job fails."""

import pytest
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.observed import Pod

from tests.support.operator_world import T0, Object, World, stamp

RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed:"
RUNC_LOST = "can't get final child's PID from pipe: EOF: unknown"
NO_FILE = "executable file not found in $PATH: unknown"


@pytest.mark.parametrize(
    ("code", "reason", "message", "meta", "expected"),
    [
        (1, "Error", "Traceback", {}, ExitClass.FAILED),
        (2, "Error", "", {}, ExitClass.FAILED),
        (134, "Error", "", {}, ExitClass.FAILED),
        (139, "Error", "", {}, ExitClass.FAILED),
        (137, "OOMKilled", "", {}, ExitClass.FAILED),
        (137, "Error", "", {}, ExitClass.DISRUPTED),
        (255, "Unknown", "the last lines of its log", {}, ExitClass.DISRUPTED),
        (143, "Error", "", {}, ExitClass.DISRUPTED),
        (128, "StartError", f"{RUNC} unable to start container process: {RUNC_LOST}", {}, ExitClass.DISRUPTED),
        (
            128,
            "StartError",
            f'{RUNC} unable to start container process: exec: "trian": {NO_FILE}',
            {},
            ExitClass.FAILED,
        ),
        (128, "StartError", f"{RUNC} container init was OOM-killed (memory limit too low?)", {}, ExitClass.FAILED),
        (EXIT_INVALID, "Error", "no such module", {}, ExitClass.INVALID),
        (0, "Completed", '{"outcome": "completed", "step": 5, "epoch": 1}', {}, ExitClass.COMPLETED),
        (0, "Completed", '{"outcome": "left", "step": 5, "epoch": 1}', {}, ExitClass.DISRUPTED),
        (0, "Completed", "", {}, ExitClass.FAILED),
        (0, "Completed", "{not json", {}, ExitClass.FAILED),
        (1, "Error", "", {"deletionTimestamp": stamp(T0)}, ExitClass.DISRUPTED),
        (EXIT_INVALID, "Error", "", {"deletionTimestamp": stamp(T0)}, ExitClass.DISRUPTED),
    ],
)
def test_classes_of_endings(
    world: World, code: int, reason: str, message: str, meta: Object, expected: ExitClass
) -> None:
    world.end("job-worker-0", code, reason, message, **meta)
    assert exit_reason.ending(Pod.read(world.pods["job-worker-0"])) is expected


def test_what_never_started_was_taken_away(world: World) -> None:
    pod = world.pods["job-worker-0"]
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    assert exit_reason.ending(Pod.read(pod)) is ExitClass.DISRUPTED


def test_a_disruption_target_was_taken_away(world: World) -> None:
    world.end("job-worker-0", 1)
    world.pods["job-worker-0"]["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    assert exit_reason.ending(Pod.read(world.pods["job-worker-0"])) is ExitClass.DISRUPTED


@pytest.mark.parametrize("times", [1, 20])
def test_disruptions_are_replaced_at_once_and_never_counted(world: World, times: int) -> None:
    for _ in range(times):
        world.now += 15
        world.answer()
        name = world.active()[0]
        del world.pods[name]
        plan = world.step()
        assert len(plan.create) == 1
        world.settle()
    assert not world.status.restarts
    assert world.status.next_worker == 2 + times


def test_killed_from_outside_is_replaced_at_once(world: World) -> None:
    world.now += 60
    world.end("job-worker-0", 137, "Error")
    plan = world.step()
    assert [pod["metadata"]["name"] for pod in plan.create] == ["job-worker-2"]
    assert not plan.status.restarts


def test_a_deleted_pod_is_replaced_before_it_has_gone(world: World) -> None:
    world.pods["job-worker-0"]["metadata"] |= {"deletionTimestamp": stamp(T0 + 30), "deletionGracePeriodSeconds": 30}
    plan = world.step()
    assert [pod["metadata"]["name"] for pod in plan.create] == ["job-worker-2"]
    assert plan.delete == []


def test_own_failures_are_counted_backed_off_and_end_the_job() -> None:
    world = World(maxRestarts=2)
    world.settle()
    delays = []
    for expected in (1, 2):
        world.now += 20
        world.answer()
        world.end(world.active()[-1], 1, "Error", "ZeroDivisionError: division by zero")
        plan = world.step()
        assert plan.create == []
        assert plan.status.restarts == expected
        assert plan.requeue_after is not None
        delays.append(plan.requeue_after)
        status, reason, message = world.condition("Restarting")
        assert (status, reason) == ("True", "WorkerFailed")
        assert "ZeroDivisionError" in message
        world.now += plan.requeue_after + 0.01
        assert len(world.step().create) == 1
        world.settle()
        assert world.condition("Restarting")[:2] == ("False", "Recovered")
    assert delays[0] < delays[1] <= 4
    world.now += 20
    world.end(world.active()[-1], 1, "Error", "ZeroDivisionError: division by zero")
    world.settle()
    assert world.status.phase == "Failed"
    status, reason, message = world.condition("Failed")
    assert (status, reason) == ("True", "TooManyFailures")
    assert "ZeroDivisionError: division by zero" in message
    assert world.active() == []


def test_workers_that_fail_together_count_once(world: World) -> None:
    world.now += 30
    world.end("job-worker-0")
    world.step()
    world.now += 1
    world.end("job-worker-1")
    world.step()
    assert world.status.restarts == 1
    world.now += 60
    world.settle()
    assert world.status.restarts == 1
    assert len(world.active()) == 2


def test_failures_right_after_each_start_count_each(world: World) -> None:
    for count in (1, 2, 3):
        world.now += 30
        world.settle()
        world.now += 1
        world.end(world.active()[-1])
        world.step()
        assert world.status.restarts == count


def test_failures_are_forgotten_after_ten_minutes_of_steps(world: World) -> None:
    world.end("job-worker-0")
    world.settle()
    world.now += 300
    world.settle()
    assert world.status.restarts == 1
    world.now += 400
    world.answer()
    world.settle()
    assert world.status.restarts == 0
    assert len(world.active()) == 2


def test_only_the_failed_one_is_backed_off(world: World) -> None:
    world.now += 30
    world.answer()
    world.end("job-worker-0")
    del world.pods["job-worker-1"]
    assert [pod["metadata"]["name"] for pod in world.step().create] == ["job-worker-2"]


def test_an_invalid_manifest_fails_at_once(world: World) -> None:
    world.end("job-worker-0", EXIT_INVALID, "Error", "model.args: unknown argument 'widht'")
    world.settle()
    assert world.status.phase == "Failed"
    assert "widht" in world.condition("Failed")[2]
    assert world.condition("Failed")[1] == "InvalidManifest"
