"""What keeps a job from starting or its pods from coming, and how it is told."""

import pytest
from adaptrain_operator.core.observed import Claim, Problem

from tests.support.operator_world import Object, World, make_spec, stamp

CLAIM: Object = {"volume": {"persistentVolumeClaim": {"claimName": "data"}}}

APART: Object = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"adaptrain.io/job-name": "job"}},
            }
        ]
    }
}


@pytest.mark.parametrize(
    ("claim", "workers", "reason"),
    [
        (Claim(False), {}, "ClaimNotFound"),
        (Claim(True, ("ReadWriteOnce",)), {}, ""),
        (Claim(True, ("ReadWriteOnce",)), {"affinity": APART}, "ClaimOfOneNode"),
        (Claim(True, ("ReadWriteMany",)), {"affinity": APART}, ""),
        (Claim(True, ("ReadWriteOncePod",)), {}, "ClaimOfOnePod"),
        (Claim(True, ("ReadWriteOncePod",)), {"max": 1, "replicas": 1}, ""),
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


@pytest.mark.parametrize(("modes", "most", "one_node"), [("Once", 4, True), ("Many", 4, False), ("Once", 1, True)])
def test_workers_share_the_only_node_that_can_mount_their_claim(modes: str, most: int, one_node: bool) -> None:
    world = World(checkpoint=CLAIM, workers={"max": most, "replicas": 1})
    world.claim = Claim(True, (f"ReadWrite{modes}",))
    world.settle()
    kind = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = world.pods["job-worker-0"]["spec"].get("affinity", {}).get("podAffinity", {}).get(kind, [])
    assert [term["topologyKey"] for term in terms] == ["kubernetes.io/hostname"] * one_node
    for term in terms:
        labels = world.pods["job-worker-0"]["metadata"]["labels"]
        assert term["labelSelector"]["matchLabels"].items() <= labels.items(), "the first one fits itself"
    assert "podAffinity" not in world.pods["job-coordinator-1"]["spec"].get("affinity", {}), "it mounts nothing"


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


def test_a_claim_that_is_being_provisioned_is_no_alarm(world: World) -> None:
    world.spec = make_spec(workers={"replicas": 3})
    world.step()
    message = "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/2 nodes"
    world.pods["job-worker-2"]["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}],
    }
    world.step()
    assert world.condition("PodsReady")[1:] == (
        "WorkersStarting",
        "2 of 3 workers running; worker 2 waits for the volume of its claim",
    )
    world.now += 31
    world.step()
    assert world.condition("PodsReady")[1] == "Unschedulable"


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
        world.now += 16
        if status == "False":
            assert plan.requeue_after is not None
            assert plan.requeue_after <= 15, "nothing changes any more that it would hear of"
        world.step()
        return world.condition("PodsReady")

    began = world.now
    status, reason, message = prepared("True")
    assert reason == "WorkersStarting"
    assert f"node a pulls the image trainer:1 of worker 0, or starts it, since {stamp(began)[11:19]} UTC" in message
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
