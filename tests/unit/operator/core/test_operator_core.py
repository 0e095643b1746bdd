"""The operator's decisions, from plain dicts: no cluster, no clock."""

from typing import Any

import pytest
from adaptrain_operator.core import naming
from adaptrain_operator.core.job import diagnostics
from adaptrain_operator.core.job.coordinator import LAST_WORDS
from adaptrain_operator.core.objects import owned

from tests.support.operator_world import T0, World, make_spec


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


@pytest.mark.parametrize("answers", [True, False])
def test_the_coordinator_of_a_job_that_ended_before_it_was_asked_is_heard_out(answers: bool) -> None:
    world = World()
    world.settle()
    for name in ("job-worker-0", "job-worker-1"):
        world.end(name, 0, "Completed", '{"outcome": "completed", "step": 99, "epoch": 2}')
    (own,) = world.pods["job-coordinator-1"]["status"]["containerStatuses"]
    own["ready"], world.answered = False, None
    plan = world.step()
    assert world.status.phase == "Succeeded"
    assert (plan.ask, plan.delete) == (None, []), "it has just started"
    own["ready"] = True
    plan = world.step()
    assert (plan.ask is not None, plan.delete) == (True, [])
    if answers:
        told = [{"time": T0, "epoch": 1, "message": "starts from weights", "count": 0}]
        world.answer(result=RESULT, recentChanges=told)
    else:
        world.now += LAST_WORDS
    plan = world.step()
    assert (plan.ask, [gone.name for gone in plan.delete]) == (None, ["job-coordinator-1"])
    assert [c.message for c in world.status.recent_changes] == (["starts from weights"] if answers else [])


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


@pytest.mark.parametrize(("told", "step"), [({"modelStep": 40}, 40), ({"modelStep": 0}, 0), ({}, 99)])
def test_the_models_step_is_the_best_ones(told: dict[str, int], step: int) -> None:
    """An older worker tells only the last one."""
    world = World(checkpoint={"uri": "s3://bucket/team"})
    world.settle()
    world.answer(result=RESULT | told, state="done")
    world.step()
    assert world.status.model is not None
    assert (world.status.step, world.status.model.step) == (99, step)


def test_a_job_that_keeps_nothing_is_warned_of_at_once_and_for_ever() -> None:
    world = World()
    plan = world.step()
    assert [event.type for event in plan.events if event.reason == "NoCheckpoint"] == ["Warning"]
    truth, reason, message = world.condition("Unsaved")
    assert (truth, reason) == ("True", "NoCheckpoint")
    assert "its model and progress are lost when its workers end; give it checkpoint.volume" in message
    world.settle()
    world.answer(result=RESULT, state="done")
    assert [event for event in world.step().events if event.reason == "NoCheckpoint"] == []
    assert world.status.phase == "Succeeded"
    assert world.condition("Unsaved")[0] == "True"


def test_what_seals_checkpoints_is_mounted_as_one_file() -> None:
    world = World(checkpoint={"uri": "s3://bucket/team", "key": {"name": "seal", "key": "hmac"}})
    world.settle()
    pod = world.pods["job-worker-0"]["spec"]
    (container,) = pod["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "adaptrain-key"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "adaptrain-key"]
    assert env["ADAPTRAIN_CHECKPOINT_KEY_FILE"] == f"{mount['mountPath']}/key"
    assert mount["readOnly"]
    assert volume["secret"]["secretName"] == "seal"
    assert volume["secret"]["items"] == [{"key": "hmac", "path": "key"}]
    assert "Unsaved" not in {condition.type for condition in world.status.conditions}


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


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (95, "1m35s"), (7300, "2h1m")])
def test_durations(seconds: float, text: str) -> None:
    assert diagnostics.duration(seconds) == text


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
    assert owned.contained(wanted, found) is same


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


def test_metrics_are_open_to_whom_the_administrator_names() -> None:
    world = World()
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    own = {"podSelector": {"matchLabels": naming.selector("job", naming.WORKER)}}
    for allowed in ([], [peer]):
        for policy in owned.network_policies(world.job, allowed):
            control, web = policy["spec"]["ingress"]
            assert control["from"] == [own]
            assert web.get("from", []) == allowed
            assert web["ports"][0]["port"] in (8080, 8081)
