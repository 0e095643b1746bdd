"""The operator's decisions, from plain dicts: no cluster, no clock."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from adaptrain_api.progress import EXIT_INVALID, Progress
from adaptrain_api.training import TrainingJobSpec, dump
from adaptrain_api.training_status import TrainingJobStatus
from adaptrain_operator.core import children, conditions, failures, naming, pods
from adaptrain_operator.core.decide import decide
from adaptrain_operator.core.failures import Ending
from adaptrain_operator.core.observed import Claim, Contact, Job, Lease, Node, Observed, Pod, Problem
from adaptrain_operator.core.plan import Plan

Object = dict[str, Any]
T0 = 1_800_000_000.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def make_spec(**changes: Any) -> TrainingJobSpec:
    workers = {"min": 1, "max": 4, "replicas": 2} | changes.pop("workers", {})
    return TrainingJobSpec.model_validate(
        {
            "image": "trainer:1",
            "workers": workers,
            "model": {"name": "mlp"},
            "data": {"name": "digits"},
            "phases": [
                {
                    "name": "train",
                    "type": "supervised",
                    "optimizer": {"learningRate": 0.001},
                    "batch": {"size": 64},
                    "stop": {"epochs": 2},
                }
            ],
        }
        | changes
    )


class World:
    """A cluster in a few dicts: it carries plans out as the API server, scheduler and kubelets would."""

    def __init__(self, **spec: Any) -> None:
        self.now = T0
        self.spec = make_spec(**spec)
        self.status = TrainingJobStatus()
        self.pods: dict[str, Object] = {}
        self.children: dict[tuple[str, str], Object] = {}
        self.nodes: dict[str, Node] | None = {name: Node(name) for name in ("a", "b", "c")}
        self.leases: dict[str, Lease] = {}
        self.claim: Claim | None = None
        self.problem: Problem | None = None
        self.progress: Progress | None = None
        self.asked: float | None = None
        self.answered: float | None = None
        self.lost_since: float | None = None
        self.cut_off = False
        self.members: set[str] = set()
        self.silent: dict[str, float] = {}
        self.extra: Object = {}
        self.deleting = False
        self.removed = False
        self.made: list[str] = []
        self.room = 100
        self.generation = 1

    @property
    def job(self) -> Job:
        return Job("job", "ns", "uid-job", self.generation, T0, self.deleting, self.spec, self.status)

    def observed(self) -> Observed:
        read = [(pod["metadata"]["labels"][naming.ROLE], Pod.read(pod)) for pod in self.pods.values()]
        number = self.status.coordinator or 0
        contact = Contact(number, self.progress, self.asked, self.answered, self.lost_since, self.cut_off)
        return Observed(
            workers=tuple(pod for role, pod in read if role == naming.WORKER),
            coordinators=tuple(pod for role, pod in read if role == naming.COORDINATOR),
            children=self.children,
            contact=contact,
            nodes=self.nodes,
            leases=self.leases,
            claim=self.claim,
            problem=self.problem,
            default_image="default:1",
        )

    def decide(self) -> Plan:
        return decide(self.job, self.observed(), self.now)

    def carry_out(self, plan: Plan) -> None:
        self.status = TrainingJobStatus.model_validate(dump(plan.status))
        for deletion in plan.delete:
            pod = self.pods[deletion.name]
            assert pod["metadata"]["uid"] == deletion.uid
            if deletion.grace == 0 or pod["status"]["phase"] != "Running":
                del self.pods[deletion.name]
            else:
                pod["metadata"] |= {"deletionTimestamp": stamp(self.now + 30), "deletionGracePeriodSeconds": 30}
        for child in plan.apply:
            self.children[child["kind"], child["metadata"]["name"]] = child
        for pod in plan.create:
            name = pod["metadata"]["name"]
            assert name not in self.made, f"{name} is made twice"
            self.made.append(name)
            made = {**pod, "metadata": {**pod["metadata"], "uid": f"uid-{name}", "creationTimestamp": stamp(self.now)}}
            self.pods[name] = made | {"status": {"phase": "Pending"}}
        self.removed = self.removed or plan.remove_job

    def step(self) -> Plan:
        """Decide and carry out once."""
        plan = self.decide()
        self.carry_out(plan)
        return plan

    def settle(self, start: bool = True) -> None:
        """Decide, start what waits and have it join, until nothing changes any more."""
        for _ in range(60):
            before = (self.status, sorted(self.pods), len(self.made))
            self.step()
            if start:
                self.start()
            for name in [name for name, pod in self.pods.items() if "deletionTimestamp" in pod["metadata"]]:
                del self.pods[name]
            self.answer()
            if before == (self.status, sorted(self.pods), len(self.made)):
                return
            self.now += 0.1
        raise AssertionError("it never settles")

    def start(self, *names: str, node: str = "") -> None:
        running = sum(pod["status"]["phase"] == "Running" for pod in self.pods.values())
        for index, (name, pod) in enumerate(sorted(self.pods.items())):
            if pod["status"]["phase"] != "Pending" or (names and name not in names) or running >= self.room:
                continue
            running += 1
            pod["spec"] = {**pod["spec"], "nodeName": node or "abc"[index % 3]}
            pod["status"] = {
                "phase": "Running",
                "podIP": f"10.0.0.{index + 1}",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"state": {"running": {"startedAt": stamp(self.now)}}}],
            }

    def answer(self, **more: Any) -> None:
        """The newest coordinator answers, if it runs; running workers are members."""
        number = self.status.coordinator or 0
        pod = self.pods.get(naming.coordinator_pod("job", number))
        if pod is None or pod["status"]["phase"] != "Running":
            return
        self.extra |= more
        self.members = {
            pod["metadata"]["uid"]
            for pod in self.pods.values()
            if pod["metadata"]["labels"][naming.ROLE] == naming.WORKER
            and pod["status"]["phase"] == "Running"
            and pod["metadata"]["uid"] not in self.silent
        }
        self.progress = Progress.model_validate(
            {
                "number": number,
                "state": "running",
                "step": 10,
                "members": [{"id": uid, "name": uid, "step": 10, "joined": T0} for uid in sorted(self.members)],
                "silent": [{"id": uid, "name": uid, "since": since} for uid, since in self.silent.items()],
                **self.extra,
            }
        )
        self.answered, self.lost_since = self.now, None

    def end(self, name: str, code: int = 1, reason: str = "Error", message: str = "boom", **meta: Any) -> None:
        pod = self.pods[name]
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": stamp(self.now)}
        ended["startedAt"] = pod["metadata"]["creationTimestamp"]
        pod["status"] = {
            **pod["status"],
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"state": {"terminated": ended}}],
        }
        pod["metadata"] |= meta

    def condition(self, type: str) -> tuple[str, str, str]:
        found = {one.type: one for one in self.status.conditions}.get(type)
        return ("", "", "") if found is None else (found.status, found.reason, found.message)

    def active(self) -> list[str]:
        return sorted(
            name
            for name, pod in self.pods.items()
            if pod["metadata"]["labels"][naming.ROLE] == naming.WORKER
            and pod["status"]["phase"] in ("Pending", "Running")
            and "deletionTimestamp" not in pod["metadata"]
        )


@pytest.fixture
def world() -> World:
    """A job that runs with two workers."""
    made = World()
    made.settle()
    assert made.status.phase == "Running"
    assert made.active() == ["job-worker-0", "job-worker-1"]
    return made


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


RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed:"
RUNC_LOST = "can't get final child's PID from pipe: EOF: unknown"
NO_FILE = "executable file not found in $PATH: unknown"


@pytest.mark.parametrize(
    ("code", "reason", "message", "meta", "expected"),
    [
        (1, "Error", "Traceback", {}, Ending.FAILED),
        (2, "Error", "", {}, Ending.FAILED),
        (134, "Error", "", {}, Ending.FAILED),
        (139, "Error", "", {}, Ending.FAILED),
        (137, "OOMKilled", "", {}, Ending.FAILED),
        (137, "Error", "", {}, Ending.DISRUPTED),
        (255, "Unknown", "the last lines of its log", {}, Ending.DISRUPTED),
        (143, "Error", "", {}, Ending.DISRUPTED),
        (128, "StartError", f"{RUNC} unable to start container process: {RUNC_LOST}", {}, Ending.DISRUPTED),
        (128, "StartError", f'{RUNC} unable to start container process: exec: "trian": {NO_FILE}', {}, Ending.FAILED),
        (128, "StartError", f"{RUNC} container init was OOM-killed (memory limit too low?)", {}, Ending.FAILED),
        (EXIT_INVALID, "Error", "no such module", {}, Ending.INVALID),
        (0, "Completed", '{"outcome": "completed", "step": 5, "epoch": 1}', {}, Ending.COMPLETED),
        (0, "Completed", '{"outcome": "left", "step": 5, "epoch": 1}', {}, Ending.DISRUPTED),
        (0, "Completed", "", {}, Ending.FAILED),
        (0, "Completed", "{not json", {}, Ending.FAILED),
        (1, "Error", "", {"deletionTimestamp": stamp(T0)}, Ending.DISRUPTED),
        (EXIT_INVALID, "Error", "", {"deletionTimestamp": stamp(T0)}, Ending.DISRUPTED),
    ],
)
def test_classes_of_endings(world: World, code: int, reason: str, message: str, meta: Object, expected: Ending) -> None:
    world.end("job-worker-0", code, reason, message, **meta)
    assert failures.ending(Pod.read(world.pods["job-worker-0"])) is expected


def test_what_never_started_was_taken_away(world: World) -> None:
    pod = world.pods["job-worker-0"]
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    assert failures.ending(Pod.read(pod)) is Ending.DISRUPTED


def test_a_disruption_target_was_taken_away(world: World) -> None:
    world.end("job-worker-0", 1)
    world.pods["job-worker-0"]["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    assert failures.ending(Pod.read(world.pods["job-worker-0"])) is Ending.DISRUPTED


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
        changed = {"min": least, "replicas": 2, "labels": {"team": "a"}}
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
    world.leases = {"b": Lease(world.now + 1, world.now + 1, world.now + 1)}
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
    world.leases = {"b": Lease(world.now - 20, world.now - 5, world.now)}
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
            world.leases = {"c": Lease(world.now - 15, world.now - 4, world.now)}
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
    world.leases = {"c": Lease(world.now - 15, world.now - 4, world.now)}
    world.step()
    assert "affinity" in world.pods["job-coordinator-2"]["spec"]
    world.now += 10
    assert world.step().create == [], "it waits for the node"
    world.leases = {"c": Lease(world.now, world.now, world.now)}
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
            world.leases = {"c": Lease(world.now - 15, world.now - 4, world.now)}
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
