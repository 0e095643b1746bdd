"""Each way in which a pod can end has a row, a test, and a line in docs/design/failures.md."""

import json
from typing import Any

import pytest
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from adaptrain_api.training.failures import PodFailurePolicy
from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.observed import Pod

from tests.support.operator_world import T0, Object, World, stamp
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "design" / "failures.md"
LOW = "The node was low on resource: memory."
RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed:"


def said(outcome: str) -> str:
    return json.dumps({"outcome": outcome, "step": 5, "epoch": 1, "message": "words"})


def exited(code: int, reason: str = "Error", message: str = "") -> Object:
    return {"exitCode": code, "reason": reason, "message": message, "finishedAt": stamp(T0)}


def target(reason: str) -> Object:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


def why(reason: str, message: str = "") -> Object:
    return {"reason": reason, "message": message}


# What a pod shows: its container's end (None: it never ran), the rest of its status, its metadata, and what we make
# of it. In the order of exit_reason.ROWS, one line or more for each.
D, F = ExitClass.DISRUPTED, ExitClass.FAILED
CASES: list[tuple[int, Object | None, Object, Object, ExitClass]] = [
    (0, exited(0, "Completed", said("completed")), {}, {}, ExitClass.COMPLETED),
    (0, exited(255, "Unknown", said("completed")), {}, {}, ExitClass.COMPLETED),
    (0, exited(0, "Completed", said("completed")), {}, {"deletionTimestamp": stamp(T0)}, ExitClass.COMPLETED),
    (1, exited(137), why("Evicted", "Pod ephemeral local storage usage exceeds the total limit of …"), {}, F),
    (1, None, why("Evicted", 'Container worker exceeded its local ephemeral storage limit "30Mi".'), {}, F),
    (1, exited(137), why("Evicted", 'Usage of EmptyDir volume "shm" exceeds the limit "1Gi".'), {}, F),
    (1, exited(0, "Completed", said("left")), why("Evicted", "Pod ephemeral local storage usage exceeds …"), {}, F),
    (2, exited(0, "Completed", said("left")), {}, {}, D),
    (3, exited(1), {}, {"deletionTimestamp": stamp(T0)}, D),
    (3, exited(137), target("DeletionByTaintManager"), {"deletionTimestamp": stamp(T0)}, D),
    (4, exited(143), target("PreemptionByScheduler"), {}, D),
    (4, exited(1), target("PreemptionByScheduler"), {}, D),
    (5, exited(143), target("DeletionByTaintManager"), {}, D),
    (6, exited(143), target("EvictionByEvictionAPI"), {}, D),
    (7, None, target("DeletionByPodGC"), {}, D),
    (8, exited(137), {**why("Evicted", LOW), **target("TerminationByKubelet")}, {}, D),
    (9, exited(1), target("SomethingNew"), {}, D),
    (9, exited(1), {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}, {}, D),
    (10, exited(137), why("Evicted", LOW), {}, D),
    (10, None, why("Evicted", "The node had condition: [DiskPressure]."), {}, D),
    (11, exited(137), why("Preempting", "Preempted in order to admit critical pod"), {}, D),
    (12, exited(143), why("Terminated", "Pod was terminated in response to imminent node shutdown."), {}, D),
    (12, None, why("NodeShutdown", "Pod was rejected as the node is shutting down."), {}, D),
    (12, exited(1), why("Shutdown"), {}, D),
    (13, exited(1), why("NodeLost"), {}, D),
    (14, exited(137), why("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"), {}, D),
    (15, None, why("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"), {}, D),
    (15, None, why("NodeAffinity", "Predicate NodeAffinity failed"), {}, D),
    (15, None, why("OutOfcpu", "Node didn't have enough resource: cpu"), {}, D),
    (15, None, why("OutOfnvidia.com/gpu"), {}, D),
    (15, None, why("TopologyAffinityError"), {}, D),
    (15, None, {}, {}, D),
    (16, exited(137, "ContainerStatusUnknown", "The container could not be located"), {}, {}, D),
    (16, exited(255, "Unknown", "the last lines of its log"), {}, {}, D),
    (17, exited(EXIT_INVALID, message=said("failed")), {}, {}, ExitClass.INVALID),
    (18, exited(137, "OOMKilled"), {}, {}, F),
    (18, exited(1, "OOMKilled", said("failed")), {}, {}, F),
    (19, exited(128, "StartError", f'{RUNC} exec: "trian": executable file not found in $PATH: unknown'), {}, {}, F),
    (19, exited(127, "ContainerCannotRun", 'exec: "trian": not found'), {}, {}, F),
    (20, exited(128, "StartError", f"{RUNC} can't get final child's PID from pipe: EOF: unknown"), {}, {}, D),
    *((21, exited(code, message=said("failed")), {}, {}, F) for code in (0, 1, 130, 134, 137, 143, 255)),
    (21, exited(255, "Unknown", said("failed")), {}, {}, F),
    *((22, exited(code), {}, {}, D) for code in (130, 137, 143)),
    (24, exited(0, "Completed"), {}, {}, F),
    (24, exited(0, "Completed", "{not json"), {}, {}, F),
    *((25, exited(code, message="Traceback"), {}, {}, F) for code in (1, 2, 126, 127, 132, 134, 135, 136, 139, 255)),
]  # fmt: skip


def ended(exit: Object | None, status: Object, meta: Object) -> Pod:
    container = {"waiting": {"reason": "ContainerCreating"}} if exit is None else {"terminated": exit}
    return Pod.read(
        {
            "metadata": {"name": "j-worker-0", "uid": "u", "creationTimestamp": stamp(T0), **meta},
            "spec": {"nodeName": "a"},
            "status": {"phase": "Failed", "containerStatuses": [{"name": "worker", "state": container}], **status},
        }
    )


@pytest.mark.parametrize(("row", "exit", "status", "meta", "expected"), CASES)
def test_every_way_to_end(row: int, exit: Object | None, status: Object, meta: Object, expected: ExitClass) -> None:
    pod = ended(exit, status, meta)
    assert exit_reason.row_of(pod) is exit_reason.ROWS[row]
    assert exit_reason.ending(pod) is expected is exit_reason.ROWS[row].ending
    assert exit_reason.explain(pod)


def test_init_containers_that_fail() -> None:
    for name, code, row, expected in (
        ("source", EXIT_INVALID, 17, ExitClass.INVALID),
        ("packages", EXIT_INVALID, 17, ExitClass.INVALID),
        ("rules", EXIT_INVALID, 23, F),
        ("source", 1, 23, F),
        ("rules", 137, 22, D),
    ):
        failed = {"name": name, "state": {"terminated": exited(code, message="no route")}}
        pod = ended(None, {"initContainerStatuses": [failed]}, {})
        assert exit_reason.row_of(pod) is exit_reason.ROWS[row]
        assert exit_reason.ending(pod) is expected
        assert exit_reason.explain(pod) == f"init container {name}: exit code {code}: no route"


def test_every_row_has_a_test() -> None:
    assert {case[0] for case in CASES} | {23} == set(range(len(exit_reason.ROWS)))


def test_the_page_shows_the_table() -> None:
    assert exit_reason.table() in PAGE.read_text(), f"put exit_reason.table() into {PAGE}"


def test_a_result_that_kubernetes_cut_still_says_how_training_ended() -> None:
    metrics = {f"val/accuracy/{n:04d}": 0.123456789 for n in range(600)}
    whole = json.dumps({"outcome": "completed", "step": 12, "epoch": 3, "message": "", "metrics": metrics})
    pod = ended(exited(0, "Completed", whole[:4096]), {}, {})
    assert exit_reason.ending(pod) is ExitClass.COMPLETED
    result = exit_reason.parse_result(pod)
    assert result is not None
    assert (result.step, result.epoch) == (12, 3)


def policy(*rules: tuple[str, str, list[int]]) -> dict[str, Any]:
    return {"rules": [{"action": a, "onExitCodes": {"operator": o, "values": v}} for a, o, v in rules]}


@pytest.mark.parametrize(
    ("given", "exit", "status", "expected"),
    [
        (policy(("FailJob", "In", [3, 42])), exited(42), {}, ExitClass.FATAL),
        (policy(("FailJob", "In", [3, 42])), exited(1), {}, ExitClass.FAILED),
        (policy(("Ignore", "In", [42]), ("FailJob", "NotIn", [1])), exited(42), {}, ExitClass.DISRUPTED),
        (policy(("Ignore", "In", [42]), ("FailJob", "NotIn", [1])), exited(1), {}, ExitClass.FAILED),
        (policy(("Ignore", "In", [42]), ("FailJob", "NotIn", [1])), exited(2), {}, ExitClass.FATAL),
        (policy(("FailJob", "NotIn", [1])), exited(0, "Completed"), {}, ExitClass.FAILED),
        (policy(("Count", "In", [64])), exited(64), {}, ExitClass.FAILED),
        (policy(("Count", "In", [137])), exited(137), {}, ExitClass.FAILED),
        (policy(("Ignore", "In", [137])), exited(137, "OOMKilled"), {}, ExitClass.DISRUPTED),
        (policy(("FailJob", "NotIn", [1])), exited(137), target("PreemptionByScheduler"), ExitClass.DISRUPTED),
        (policy(("FailJob", "NotIn", [1])), exited(137), why("Evicted", "low on memory"), ExitClass.DISRUPTED),
        (policy(("FailJob", "NotIn", [1])), exited(0, "Completed", said("completed")), {}, ExitClass.COMPLETED),
    ],
)
def test_rules_by_exit_code(given: dict[str, Any], exit: Object, status: Object, expected: ExitClass) -> None:
    assert exit_reason.ending(ended(exit, status, {}), PodFailurePolicy.model_validate(given)) is expected


def test_a_rule_ends_the_job_at_once() -> None:
    world = World(podFailurePolicy=policy(("FailJob", "In", [42])))
    world.settle()
    world.end("job-worker-0", 42, message="no licence")
    world.settle()
    status, reason, message = world.condition("Failed")
    assert (status, reason) == ("True", "PodFailurePolicy")
    assert message == "podFailurePolicy ends the job: job-worker-0: exit code 42: no licence"


def test_a_rule_has_failures_forgiven() -> None:
    world = World(maxRestarts=1, podFailurePolicy=policy(("Ignore", "In", [42])))
    world.settle()
    for _ in range(10):
        world.now += 60
        world.answer()
        world.end(world.active()[0], 42)
        world.settle()
    assert world.status.phase == "Running"
    assert not world.status.restarts
    assert len(world.active()) == 2


def test_workers_that_each_node_refuses_are_told_and_slowed_down() -> None:
    world = World()
    world.step()
    for _ in range(60):
        world.now += 1
        world.start(f"job-coordinator-{world.status.coordinator}")
        for name in world.active():
            refused = {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
            world.pods[name]["status"] = {"phase": "Failed", **refused}
        world.answer()
        world.step()
    status, reason, message = world.condition("PodsReady")
    assert (status, reason) == ("False", "WorkersTakenAway")
    assert "no healthy devices present" in message
    assert not world.status.restarts
    assert len(world.made) < 20
