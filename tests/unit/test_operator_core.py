"""The operator's decisions, from plain dicts: no cluster, no clock."""

from typing import Any

import pytest
from adaptrain_operator.core import children, conditions, pods
from adaptrain_operator.core.observed import Claim, Problem

from tests.unit.operator_world import T0, Object, World, make_spec, stamp


def test_a_new_job_becomes_its_objects() -> None:
    world = World()
    plan = world.step()
    names = [pod["metadata"]["name"] for pod in plan.create]
    assert names == ["job-coordinator-1", "job-worker-0", "job-worker-1"]
    assert {(child["kind"], child["metadata"]["name"]) for child in plan.apply} == {
        ("ServiceAccount", "job-training"),
        ("ConfigMap", "job-job"),
        ("Service", "job-coordinator"),
        ("PodDisruptionBudget", "job-workers"),
        ("NetworkPolicy", "job-workers"),
        ("NetworkPolicy", "job-coordinator"),
    }
    assert plan.status.next_worker == 2
    assert plan.status.coordinator == 1
    assert plan.status.phase == "Pending"
    for child in (*plan.apply, *plan.create):
        assert child["metadata"]["ownerReferences"][0]["uid"] == "uid-job"


def test_a_settled_job_asks_for_nothing(world: World) -> None:
    plan = world.decide()
    assert (plan.delete, plan.create, plan.events) == ([], [], [])
    assert plan.status == world.status
    assert {child["kind"] for child in plan.apply} == {"ServiceAccount", "ConfigMap"}
    assert world.condition("PodsReady") == ("True", "AllWorkersRunning", "2 of 2 workers running")
    assert world.status.workers == "2/2"
    assert world.status.step == 10


def test_pods_fit_the_restricted_level(world: World) -> None:
    for pod in world.pods.values():
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["restartPolicy"] == "Never"
        rules = container["securityContext"]
        assert rules["readOnlyRootFilesystem"]
        assert not rules["allowPrivilegeEscalation"]
        assert rules["capabilities"] == {"drop": ["ALL"]}


def test_suspend_and_resume(world: World) -> None:
    world.spec = make_spec(suspend=True)
    plan = world.step()
    assert {deletion.name for deletion in plan.delete} == {"job-worker-0", "job-worker-1"}
    assert world.status.phase == "Pending"
    world.settle()
    assert world.pods == {}
    assert world.status.phase == "Suspended"
    assert world.status.start_time is None
    assert world.condition("Suspended")[0] == "True"
    world.spec = make_spec()
    world.settle()
    assert world.status.phase == "Running"
    assert world.active() == ["job-worker-2", "job-worker-3"]
    assert world.status.coordinator == 2
    assert world.condition("Suspended")[0] == "False"


def test_the_deadline_counts_from_the_start() -> None:
    world = World(activeDeadlineSeconds=100)
    world.settle()
    plan = world.decide()
    assert plan.requeue_after is not None
    assert plan.requeue_after <= 100
    world.now = T0 + 101
    world.answer()
    world.settle()
    assert world.condition("Failed")[1] == "DeadlineExceeded"
    assert world.active() == []
    assert "job-coordinator-1" not in world.pods


def test_changes_of_membership_are_told_once(world: World) -> None:
    lost = {"time": T0 + 5, "epoch": 3, "message": "job-worker-1 is gone", "count": 0}
    world.answer(recentChanges=[lost])
    plan = world.step()
    assert [e.message for e in plan.events if e.reason == "MembershipChanged"] == ["job-worker-1 is gone"]
    world.answer(recentChanges=[lost | {"stall": 0.0731}], goodput=0.98712)
    plan = world.step()
    assert [e for e in plan.events if e.reason == "MembershipChanged"] == []
    (change,) = world.status.recent_changes
    assert (change.change, change.message, change.stall_seconds) == ("1.0", "job-worker-1 is gone", 0.0731)
    assert world.status.goodput == "98.7%"
    assert world.step().status is None or world.step().status == world.status, "nothing new, and a write all the same"


def test_only_the_newest_changes_are_kept(world: World) -> None:
    world.answer(
        recentChanges=[{"time": T0 + n, "epoch": n, "message": f"change {n}", "count": n} for n in range(30)]
    )  # fmt: skip
    world.step()
    assert [c.message for c in world.status.recent_changes] == [f"change {n}" for n in range(20, 30)]


def test_what_happened_is_told_of_a_job_that_ended_before_it_was_asked(world: World) -> None:
    world.answer(result=RESULT, recentChanges=[{"time": T0, "epoch": 1, "message": "job-worker-0 starts", "count": 0}])
    world.step()
    assert world.status.phase == "Succeeded"
    assert [c.message for c in world.status.recent_changes] == ["job-worker-0 starts"]


RESULT = {
    "outcome": "completed",
    "step": 99,
    "epoch": 2,
    "metrics": {"val/accuracy": 0.98},
    "model": "best.safetensors",
}


def test_completion_by_the_coordinators_word(world: World) -> None:
    world.answer(result=RESULT, state="done")
    world.step()
    assert world.status.phase == "Succeeded"
    assert world.status.model is not None
    assert world.status.model.path == "ns.job/best.safetensors"
    assert (world.status.model.metric, world.status.model.value) == ("val/accuracy", 0.98)
    assert world.active() == ["job-worker-0", "job-worker-1"]
    for name in world.active():
        world.end(name, 0, "Completed", '{"outcome": "completed", "step": 99, "epoch": 2}')
    world.settle()
    assert sorted(world.pods) == ["job-worker-0", "job-worker-1"]
    assert world.condition("Complete")[0] == "True"


def test_completion_by_a_workers_word_without_a_coordinator(world: World) -> None:
    del world.pods["job-coordinator-1"]
    world.end("job-worker-1", 0, "Completed", '{"outcome": "completed", "step": 99, "epoch": 2, "model": "m"}')
    plan = world.step()
    assert plan.create == []
    assert world.status.phase == "Succeeded"
    assert world.status.step == 99


def test_ttl_deletes_the_job_alone() -> None:
    world = World(ttlSecondsAfterFinished=10)
    world.settle()
    world.answer(result=RESULT, state="done")
    plan = world.step()
    assert plan.requeue_after is not None
    assert not world.removed
    world.now += 10
    assert world.step().remove_job


def test_a_deleted_job_makes_nothing() -> None:
    world = World()
    world.deleting = True
    plan = world.step()
    assert (plan.create, plan.apply, plan.delete) == ([], [], [])


CLAIM: Object = {"volume": {"persistentVolumeClaim": {"claimName": "data"}}}


@pytest.mark.parametrize(
    ("claim", "workers", "reason"),
    [
        (Claim(False), {}, "ClaimNotFound"),
        (Claim(True, ("ReadWriteOnce",)), {}, "ClaimOfOneNode"),
        (Claim(True, ("ReadWriteOncePod",)), {}, "ClaimOfOneNode"),
        (Claim(True, ("ReadWriteOnce",)), {"max": 1, "replicas": 1}, ""),
        (Claim(True, ("ReadWriteOnce", "ReadWriteMany")), {}, ""),
        (Claim(True, known=False), {}, ""),
    ],
)
def test_claims(claim: Claim, workers: Object, reason: str) -> None:
    world = World(checkpoint=CLAIM, workers=workers)
    world.claim = claim
    world.step()
    assert bool(world.active()) is not bool(reason)
    if reason:
        assert world.condition("PodsReady")[1] == reason
        assert ":" in world.condition("PodsReady")[2]


def test_a_bucket_for_checkpoints() -> None:
    world = World(
        checkpoint={"uri": "s3://bucket/team", "secretRef": {"name": "keys"}},
        workers={"envFrom": [{"configMapRef": {"name": "mine"}}]},
    )
    world.settle()
    pod = world.pods["job-worker-0"]["spec"]
    (container,) = pod["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["ADAPTRAIN_CHECKPOINT_URI"] == "s3://bucket/team/ns.job"
    assert "ADAPTRAIN_CHECKPOINT_DIR" not in env
    assert container["envFrom"] == [{"configMapRef": {"name": "mine"}}, {"secretRef": {"name": "keys"}}]
    assert "adaptrain-checkpoint" not in {volume["name"] for volume in pod["volumes"]}

    trouble = 's3://bucket/team/ns.job: there is no bucket "bucket": create it, or correct checkpoint.uri'
    world.answer(checkpointError=trouble)
    world.step()
    assert world.condition("CheckpointAvailable") == ("False", "SavingFailed", trouble)
    world.answer(checkpointError=trouble, checkpointStep=7)
    world.step()
    assert world.condition("CheckpointAvailable") == ("True", "SavingFailed", f"step 7 is saved; {trouble}")
    world.answer(checkpointError="", checkpointStep=8)
    world.step()
    assert world.condition("CheckpointAvailable") == ("True", "Saved", "step 8 is saved")
    world.answer(result=RESULT, state="done")
    world.step()
    assert world.status.model is not None
    assert world.status.model.path == "s3://bucket/team/ns.job/best.safetensors"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No.",
            "0/2 nodes have nvidia.com/gpu free",
        ),
        ("0/3 nodes are available: 1 node(s) had untolerated taint {a: b}, 2 Insufficient cpu.", "2 Insufficient cpu"),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", "nodeSelector"),
    ],
)
def test_an_unschedulable_worker_is_told(world: World, message: str, words: str) -> None:
    world.spec = make_spec(workers={"replicas": 3})
    world.step()
    world.pods["job-worker-2"]["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    }
    world.step()
    status, reason, text = world.condition("PodsReady")
    assert (status, reason) == ("False", "Unschedulable")
    assert text.startswith("2 of 3 workers running; worker 2 is pending: ")
    assert words in text
    assert world.status.phase == "Running"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_told(world: World, reason: str) -> None:
    world.spec = make_spec(workers={"replicas": 3})
    world.step()
    waiting = {"reason": reason, "message": "no such host"}
    world.pods["job-worker-2"]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": waiting}}],
    }
    world.step()
    assert world.condition("PodsReady")[1] == "ImagePullFailed"
    assert "trainer:1" in world.condition("PodsReady")[2]


def test_files_that_are_missing_are_told_and_a_slow_image_is_not() -> None:
    """What a node says of a pod whose ConfigMap is missing, and of one whose image it still pulls."""
    script = {"command": ["python", "train.py"], "source": {"configMap": {"name": "code"}}}
    secret = {"name": "keys", "secret": {"secretName": "mine"}}
    may_be_absent = {"name": "more", "configMap": {"name": "other", "optional": True}}
    world = World(model=None, data=None, phases=None, script=script, workers={"volumes": [secret, may_be_absent]})
    world.settle(start=False)
    worker = world.pods["job-worker-0"]
    worker["spec"] = {**worker["spec"], "nodeName": "a"}

    def prepared(status: str) -> tuple[str, str, str]:
        condition = {"type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": stamp(world.now)}
        creating = {"state": {"waiting": {"reason": "ContainerCreating"}}}
        worker["status"] = {"phase": "Pending", "conditions": [condition], "containerStatuses": [creating]}
        plan = world.step()
        assert world.condition("PodsReady")[1] == "WorkersStarting"
        world.now += 6
        if status == "False":
            assert plan.requeue_after is not None
            assert plan.requeue_after <= 5, "nothing changes any more that it would hear of"
        world.step()
        return world.condition("PodsReady")

    assert prepared("True")[1] == "WorkersStarting"
    status, reason, message = prepared("False")
    assert (status, reason) == ("False", "VolumesNotMounted")
    assert message.startswith("0 of 2 workers running; worker 0 is pending: node a has not mounted its volumes since ")
    assert message.endswith(
        'check that there is ConfigMap "code" (script.source) and Secret "mine" (workers.volumes "keys") in namespace'
        " ns, else see kubectl describe pod job-worker-0 -n ns"
    )


def test_refused_pods_are_told_and_not_hammered(world: World) -> None:
    world.spec = make_spec(workers={"replicas": 3})
    world.problem = Problem("QuotaExceeded", "exceeded quota: pods=2", world.now, world.now + 8)
    plan = world.step()
    assert plan.create == []
    assert plan.requeue_after is not None
    assert plan.requeue_after <= 8
    assert world.condition("PodsReady")[1] == "QuotaExceeded"
    world.now += 9
    assert len(world.step().create) == 1


def test_pods_that_the_kubelet_refuses_are_not_made_in_a_loop(world: World) -> None:
    made = len(world.made)
    for _ in range(100):
        world.now += 1
        world.answer()
        world.step()
        for name in world.active():
            pod = world.pods[name]
            if pod["status"]["phase"] == "Pending":
                pod["status"] = {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough"}
        del_names = [n for n in world.active() if n in ("job-worker-0",)]
        for name in del_names:
            del world.pods[name]
    assert len(world.made) - made <= 20


@pytest.mark.parametrize(
    ("workers", "threads"),
    [
        ({}, "1"),
        ({"resources": {"limits": {"cpu": "4"}}}, "4"),
        ({"resources": {"limits": {"cpu": "500m"}}}, "1"),
        ({"resources": {"limits": {"cpu": 2}, "requests": {"cpu": 1}}}, "2"),
        ({"resources": {"requests": {"cpu": "1500m"}}}, "2"),
        ({"resources": {"requests": {"memory": "1Gi"}}}, "1"),
        ({"resources": {"limits": {"cpu": "7"}}, "processesPerWorker": 3}, "2"),
        ({"resources": {"limits": {"cpu": "1"}}, "processesPerWorker": 2}, "1"),
    ],
)
def test_threads(workers: Object, threads: str) -> None:
    job = World(workers=workers).job
    env = {one["name"]: one.get("value") for one in pods.worker_pod(job, 0, "i", ())["spec"]["containers"][0]["env"]}
    assert env["OMP_NUM_THREADS"] == threads
    assert env["GOMP_SPINCOUNT"] == "0"
    # Where the kubelet looks for a worker's last words: without them a completed worker left no result.
    assert env["ADAPTRAIN_TERMINATION_LOG"] == "/dev/termination-log"


def test_a_scripts_files_are_mounted_where_it_runs() -> None:
    script = {"command": ["python", "a.py"], "source": {"configMap": {"name": "code"}}}
    job = World(model=None, data=None, phases=None, script=script).job
    spec = pods.worker_pod(job, 0, "i", ())["spec"]
    (container,) = spec["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "adaptrain-source"]
    assert mount == {"name": "adaptrain-source", "mountPath": "/adaptrain/source", "readOnly": True}
    assert {"name": "adaptrain-source", "configMap": {"name": "code"}} in spec["volumes"]
    assert {"name": "ADAPTRAIN_SOURCE_DIR", "value": "/adaptrain/source"} in container["env"]


GIT = {"command": ["python", "a.py"], "source": {"git": {"url": "https://a/b", "secretRef": {"name": "login"}}}}


def git_world() -> World:
    return World(model=None, data=None, phases=None, script=GIT, workers={"min": 2, "max": 3, "replicas": 2})


def ref_of(pod: Object) -> str:
    (fetching,) = pod["spec"]["initContainers"]
    found: str = next(one["value"] for one in fetching["env"] if one["name"] == "ADAPTRAIN_GIT_REF")
    return found


def fetched(pod: Object, commit: str) -> None:
    done = {"exitCode": 0, "message": commit}
    pod["status"] = {**pod["status"], "initContainerStatuses": [{"state": {"terminated": done}}]}


def test_only_what_fetches_a_scripts_files_sees_the_credentials() -> None:
    spec = pods.worker_pod(git_world().job, 0, "i", ())["spec"]
    (fetching,), (worker,) = spec["initContainers"], spec["containers"]
    assert "login" in str(fetching["env"])
    assert "login" not in str(worker)
    assert fetching["securityContext"] == worker["securityContext"]
    assert {"name": "adaptrain-source", "emptyDir": {}} in spec["volumes"]


def test_all_workers_run_the_commit_that_the_first_one_got() -> None:
    world = git_world()
    world.settle()
    first, second = (world.pods[name] for name in world.active())
    assert ref_of(first) == "HEAD"
    fetched(first, "a" * 40)
    world.step()
    assert world.status.source_commit == "a" * 40
    fetched(second, "b" * 40)  # the branch moved on between them
    for _ in range(5):
        world.step()
        world.settle()
    assert second["metadata"]["name"] not in world.active()
    assert len(world.active()) == 2
    assert {ref_of(world.pods[name]) for name in world.active()} == {"HEAD", "a" * 40}


def test_a_commit_that_is_not_there_fails_the_job() -> None:
    world = git_world()
    world.settle()
    pod = world.pods[world.active()[0]]
    ended = {"exitCode": 64, "message": "script.source.git.ref: no such branch", "finishedAt": stamp(world.now)}
    pod["status"] = {
        "phase": "Failed",
        "initContainerStatuses": [{"state": {"terminated": ended}}],
        "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    world.step()
    assert world.status.phase == "Failed"
    assert "script.source.git.ref: no such branch" in world.condition("Failed")[2]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (95, "1m35s"), (7300, "2h1m")])
def test_durations(seconds: float, text: str) -> None:
    assert conditions.duration(seconds) == text


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2, "d": 3}]}}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": 1}, None, False),
    ],
)
def test_contained(wanted: Any, found: Any, same: bool) -> None:
    assert children.contained(wanted, found) is same


def test_a_changed_service_is_put_right(world: World) -> None:
    service = world.children["Service", "job-coordinator"]
    world.children["Service", "job-coordinator"] = {**service, "spec": {**service["spec"], "selector": {"x": "y"}}}
    assert "Service" in {child["kind"] for child in world.step().apply}


def test_an_operator_that_has_just_started_leaves_the_status_as_it_was(world: World) -> None:
    before = world.status
    world.progress, world.answered, world.asked = None, None, None
    assert world.step().status == before
    world.asked = world.now
    world.now += 10
    assert world.step().status == before
    world.now += 10
    world.step()
    assert world.status.phase == "Pending"
    assert world.condition("PodsReady")[1] == "CoordinatorNotReached"


def test_a_script_that_never_joins_is_named_with_the_remedy() -> None:
    job = World(model=None, data=None, phases=None, script={"command": ["python", "train.py"]})
    job.settle()
    outside = "uid-job-worker-1"
    job.answer(members=[{"id": "uid-job-worker-0", "name": "0", "step": 0, "joined": T0}], joining=[outside])
    job.now += 65
    job.answer()
    job.step()
    assert job.condition("PodsReady")[1] != "WorkerNotJoined", "it waits to be let in"
    job.answer(joining=[])
    job.step()
    status, reason, message = job.condition("PodsReady")
    assert (status, reason) == ("False", "WorkerNotJoined")
    assert "worker 1 has run since " in message
    assert message.endswith(
        "see kubectl logs job-worker-1 -n ns; a script joins in `with adaptrain.elastic.Elastic(…)`,"
        " one for torchrun needs launcher: torchrun"
    )


def test_a_script_for_torchrun_tells_no_steps_and_shares_out_its_threads() -> None:
    script = {"launcher": "torchrun", "command": ["python", "train.py"]}
    workers = {"processesPerWorker": 2, "resources": {"limits": {"cpu": "4"}}}
    job = World(model=None, data=None, phases=None, script=script, workers=workers)
    job.settle()
    assert job.status.step is None
    assert pods.threads(job.job) == 2
    job.end("job-worker-0", 0, message='{"outcome": "completed", "step": 0, "epoch": 0, "message": "it has ended"}')
    job.step()
    assert job.condition("Complete")[2] == "it has ended"
    assert job.status.step is None


@pytest.mark.parametrize("checkpoint", [None, "other", "models"])
def test_weights_to_start_from_are_mounted_read_only(checkpoint: str | None) -> None:
    weights = {"volume": {"persistentVolumeClaim": {"claimName": "models"}}, "path": "a/model.safetensors"}
    claim = {"volume": {"persistentVolumeClaim": {"claimName": checkpoint}}}
    world = World(initialWeights=weights, **({} if checkpoint is None else {"checkpoint": claim}))
    world.settle()
    pod = world.pods["job-worker-0"]["spec"]
    (container,) = pod["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == env["ADAPTRAIN_WEIGHTS_DIR"]]
    assert mount["readOnly"] is True
    claims = {
        one["name"]: one["persistentVolumeClaim"]["claimName"]
        for one in pod["volumes"]
        if "persistentVolumeClaim" in one
    }
    assert claims[mount["name"]] == "models"
    assert sorted(claims.values()) == sorted({"models", checkpoint} - {None}), "each claim is mounted once"
