"""Other containers in a pod, in whatever order, change nothing of what is made of our own one."""

import json
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from adaptrain_operator.core.job import exit_reason
from adaptrain_operator.core.job.exit_reason import ExitClass
from adaptrain_operator.core.objects import pods
from adaptrain_operator.core.observed import Pod

from tests.support.operator_world import INJECTED, T0, Object, World, stamp

RUNNING: Object = {"running": {"startedAt": stamp(T0)}}
NEW: Object = {"waiting": {"reason": "PodInitializing"}}
COMPLETE = json.dumps({"outcome": "completed", "step": 5, "epoch": 1})


def terminated(code: int, message: str = "") -> Object:
    times = {"startedAt": stamp(T0), "finishedAt": stamp(T0 + 60)}
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": message, **times}}


def unpullable(message: str = "no such host") -> Object:
    return {"waiting": {"reason": "ErrImagePull", "message": message}}


def read(phase: str, containers: dict[str, Object], init: dict[str, Object], native: tuple[str, ...] = ()) -> list[Pod]:
    """The pod in every order of its containers."""
    found = []
    for order in permutations(containers.items()):
        for before in permutations(init.items()):
            sidecars = [{"name": name, "restartPolicy": "Always"} for name, _ in before if name in native]
            spec = {
                "nodeName": "a",
                "containers": [{"name": name, "image": f"{name}:1"} for name, _ in order],
                "initContainers": [*sidecars, *({"name": name} for name, _ in before if name not in native)],
            }
            status: Object = {"phase": phase, "conditions": [{"type": "Ready", "status": "False"}]}
            status["containerStatuses"] = [
                {"name": name, "state": state, "ready": "running" in state} for name, state in order
            ]
            status["initContainerStatuses"] = [{"name": name, "state": state} for name, state in before]
            meta = {"name": "j-worker-0", "uid": "u", "creationTimestamp": stamp(T0)}
            found.append(Pod.read({"metadata": meta, "spec": spec, "status": status}))
    return found


@pytest.mark.parametrize(
    ("phase", "worker", "others", "init", "get", "expected"),
    [
        ("Running", terminated(1, "boom"), RUNNING, {}, exit_reason.ending, ExitClass.FAILED),
        ("Running", terminated(1), RUNNING, {}, lambda pod: (pod.terminal, pod.active, pod.lingers), (1, 0, 1)),
        ("Running", terminated(1), terminated(0), {}, lambda pod: (pod.terminal, pod.lingers), (1, 0)),
        ("Failed", terminated(1), terminated(137), {}, exit_reason.ending, ExitClass.FAILED),
        ("Failed", terminated(1), terminated(64), {}, exit_reason.ending, ExitClass.FAILED),
        ("Failed", terminated(0, COMPLETE), terminated(137), {}, exit_reason.ending, ExitClass.COMPLETED),
        ("Failed", terminated(1), terminated(0, COMPLETE), {}, exit_reason.ending, ExitClass.FAILED),
        (
            "Failed",
            terminated(1, "boom"),
            terminated(0),
            {"mesh": terminated(143)},
            exit_reason.ending,
            ExitClass.FAILED,
        ),
        (
            "Failed",
            terminated(0, COMPLETE),
            RUNNING,
            {"mesh": terminated(143)},
            exit_reason.ending,
            ExitClass.COMPLETED,
        ),
        ("Running", RUNNING, RUNNING, {"mesh": RUNNING}, lambda pod: pod.running_since, T0),
        ("Running", RUNNING, terminated(1), {}, lambda pod: (pod.active, pod.ready, pod.exit), (True, True, None)),
        ("Pending", RUNNING, unpullable(), {}, lambda pod: (pod.phase, pod.waiting), ("Running", None)),
        ("Running", NEW, RUNNING, {}, lambda pod: pod.phase, "Pending"),
        ("Pending", unpullable(), RUNNING, {"mesh": RUNNING}, lambda pod: pod.waiting[0], "ErrImagePull"),
        ("Pending", NEW, NEW, {"mesh": unpullable()}, lambda pod: pod.waiting[0], "ErrImagePull"),
        ("Pending", NEW, NEW, {"rules": unpullable()}, lambda pod: pod.waiting[0], "ErrImagePull"),
        ("Failed", NEW, NEW, {"rules": terminated(64, "no route")}, exit_reason.ending, ExitClass.FAILED),
        (
            "Failed",
            NEW,
            NEW,
            {"rules": terminated(1, "no route")},
            lambda pod: "rules" in exit_reason.explain(pod),
            True,
        ),
        ("Failed", NEW, NEW, {"source": terminated(64, "no branch")}, exit_reason.ending, ExitClass.INVALID),
        (
            "Running",
            RUNNING,
            RUNNING,
            {"rules": terminated(0, "applied"), "source": terminated(0, "abc")},
            lambda pod: pod.source_commit,
            "abc",
        ),
        ("Running", RUNNING, RUNNING, {"rules": terminated(0, "applied")}, lambda pod: pod.source_commit, None),
        ("Running", RUNNING, RUNNING, {}, lambda pod: pod.image, "worker:1"),
    ],
)
def test_a_pod_is_read_by_its_own_container(
    phase: str, worker: Object, others: Object, init: dict[str, Object], get: Callable[[Any], Any], expected: Any
) -> None:
    for pod in read(phase, {"agent": others, "worker": worker, "zone": others}, init, native=("mesh",)):
        assert get(pod) == expected


@pytest.mark.parametrize("injected", [(), *((one,) for one in INJECTED), INJECTED])
def test_a_worker_that_always_crashes_ends_its_job_whatever_was_injected(injected: tuple[str, ...]) -> None:
    world = World(maxRestarts=3, workers={"min": 1, "max": 1, "replicas": 1})
    world.injected = injected
    world.settle()
    for _ in range(60):
        for name in world.active():
            if world.pods[name]["status"]["phase"] == "Running":
                world.end(name, 1)
        world.now += 20
        world.settle()
        if world.status.phase == "Failed":
            break
    assert world.condition("Failed")[1] == "TooManyFailures"
    assert len([name for name in world.made if "worker" in name]) == 4
    assert "boom" in world.condition("Failed")[2]


@pytest.mark.parametrize("kept", ["first", "last"])
@pytest.mark.parametrize("suspend", [False, True])
def test_a_pod_that_another_container_keeps_is_removed(kept: str, suspend: bool) -> None:
    world = World()
    world.injected = (kept,)
    world.settle()
    world.end("job-worker-0", 0, "Completed", json.dumps({"outcome": "left", "step": 1, "epoch": 0}))
    world.spec = world.spec.model_copy(update={"suspend": suspend})
    world.now += 90
    plan = world.step()
    assert ("job-worker-0", None) in [(deletion.name, deletion.grace) for deletion in plan.delete]


@pytest.mark.parametrize("kept", ["first", "last"])
def test_a_finished_jobs_pods_are_removed_though_another_container_runs(kept: str) -> None:
    world = World()
    world.injected = (kept,)
    world.settle()
    for name in world.active():
        world.end(name, 0, "Completed", COMPLETE)
    for _ in range(3):
        world.settle()
        world.now += 61
    assert world.status.phase == "Succeeded"
    assert not [name for name, pod in world.pods.items() if pod["status"]["phase"] == "Running"]


def test_kubectl_logs_shows_our_container() -> None:
    job = World().job
    made = (pods.worker_pod(job, 0, "i", ()), pods.coordinator_pod(job, 1, "i", None, ()))
    shown = [pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] for pod in made]
    assert shown == ["worker", "coordinator"]
