"""A cluster in a few dicts, to try the operator's decisions on: no API server, no clock."""

from datetime import UTC, datetime
from typing import Any

from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.training.job import TrainingJobSpec, dump
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_operator.core import naming
from adaptrain_operator.core.job.reconcile import decide
from adaptrain_operator.core.observed import Claim, Contact, Job, Lease, Node, Observed, Pod, Problem
from adaptrain_operator.core.plan import Plan
from adaptrain_operator.core.sightings import sighted

from tests.support.manifests import small_training

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
            **small_training(),
        }
        | changes
    )


INJECTED = ("first", "last", "native", "init")
"""Containers that a webhook may add to every pod: before ours, behind it, as a native sidecar, as an init container."""


class World:
    """A cluster in a few dicts: it carries plans out as the API server, scheduler and kubelets would."""

    def __init__(self, **spec: Any) -> None:
        self.now = T0
        self.spec = make_spec(**spec)
        self._made: tuple[TrainingJobSpec, Object] = self.spec, {}
        """What the operator made of this spec."""
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
        self.sighted: dict[str, Pod] = {}
        """Pods as the operator sees them, by uid."""
        self.injected: tuple[str, ...] = ()
        self.untrained: set[str] = set()
        """Members that have not applied a step yet."""
        self.ended: set[str] = set()
        """Pods whose own container has ended."""

    def ours(self) -> float:
        """The operator's clock."""
        return self.now

    def api(self) -> float:
        """The API server's clock."""
        return self.now

    def of(self, node: str | None) -> float:
        """A node's clock."""
        return self.now

    @property
    def job(self) -> Job:
        if self._made[0] is not self.spec:
            self._made = self.spec, {}
        made = self._made[1]
        return Job("job", "ns", "uid-job", self.generation, T0, self.deleting, self.spec, self.status, made)

    def observed(self) -> Observed:
        pods = [Pod.read(pod) for pod in self.pods.values()]
        self.sighted = {pod.uid: sighted(pod, self.sighted.get(pod.uid), self.ours()) for pod in pods}
        read = [
            (pod["metadata"]["labels"][naming.ROLE], self.sighted[pod["metadata"]["uid"]]) for pod in self.pods.values()
        ]
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
        return decide(self.job, self.observed(), self.ours())

    def carry_out(self, plan: Plan) -> None:
        self.status = TrainingJobStatus.model_validate(dump(plan.status))
        for deletion in plan.delete:
            pod = self.pods[deletion.name]
            assert pod["metadata"]["uid"] == deletion.uid
            if deletion.grace == 0 or pod["status"]["phase"] != "Running":
                del self.pods[deletion.name]
            else:
                pod["metadata"] |= {"deletionTimestamp": stamp(self.api() + 30), "deletionGracePeriodSeconds": 30}
        for child in plan.apply:
            self.children[child["kind"], child["metadata"]["name"]] = child
        for pod in plan.create:
            name = pod["metadata"]["name"]
            assert name not in self.made, f"{name} is made twice"
            self.made.append(name)
            made = {
                **pod,
                "metadata": {**pod["metadata"], "uid": f"uid-{name}", "creationTimestamp": stamp(self.api())},
            }
            self.pods[name] = self._inject(made | {"status": {"phase": "Pending"}})
        self.removed = self.removed or plan.remove_job
        self.observed()

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
                **self.statuses(pod, {"running": {"startedAt": stamp(self.of(pod["spec"]["nodeName"]))}}),
            }

    def answer(self, **more: Any) -> None:
        """The newest coordinator answers, if it runs; running workers are members."""
        number = self.status.coordinator or 0
        pod = self.pods.get(naming.coordinator_pod("job", number))
        if pod is None or pod["status"]["phase"] != "Running" or pod["metadata"]["name"] in self.ended:
            return
        self.extra |= more
        self.members = {
            pod["metadata"]["uid"]
            for name, pod in self.pods.items()
            if pod["metadata"]["labels"][naming.ROLE] == naming.WORKER
            and pod["status"]["phase"] == "Running"
            and name not in self.ended
            and pod["metadata"]["uid"] not in self.silent
        }
        self.progress = Progress.model_validate(
            {
                "number": number,
                "state": "running",
                "step": 10,
                "members": [
                    {"id": uid, "name": uid, "step": 10, "joined": T0, "trained": uid not in self.untrained}
                    for uid in sorted(self.members)
                ],
                "silent": [{"id": uid, "name": uid, "since": since} for uid, since in self.silent.items()],
                **self.extra,
            }
        )
        self.answered, self.lost_since = self.now, None

    def end(self, name: str, code: int = 1, reason: str = "Error", message: str = "boom", **meta: Any) -> None:
        pod = self.pods[name]
        self.ended.add(name)
        ended = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "finishedAt": stamp(self.of(pod["spec"].get("nodeName"))),
        }
        ended["startedAt"] = pod["metadata"]["creationTimestamp"]
        # A container that nobody ends keeps its pod running.
        kept = {"first", "last"} & set(self.injected)
        pod["status"] = {
            **pod["status"],
            "phase": "Running" if kept else "Failed" if code else "Succeeded",
            **self.statuses(pod, {"terminated": ended}),
        }
        pod["metadata"] |= meta

    def statuses(self, pod: Object, own: Object) -> Object:
        """The statuses of a pod's containers, given the state of its own one."""
        others = {"state": {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}, "ready": True}
        role = pod["metadata"]["labels"][naming.ROLE]
        containers: list[Object] = [{"name": role, "state": own, "ready": "running" in own}]
        if "first" in self.injected:
            containers.insert(0, {"name": "agent", **others})
        if "last" in self.injected:
            containers.append({"name": "zone", **others})
        init: list[Object] = []
        if "init" in self.injected:
            init.append({"name": "rules", "state": {"terminated": {"exitCode": 0, "message": "rules applied"}}})
        if "native" in self.injected:
            ended = {"terminated": {"exitCode": 143, "reason": "Error"}}
            init.append({"name": "mesh", **({"state": ended} if "terminated" in own else others)})
        return {"containerStatuses": containers} | ({"initContainerStatuses": init} if init else {})

    def _inject(self, pod: Object) -> Object:
        containers = list(pod["spec"]["containers"])
        if "first" in self.injected:
            containers.insert(0, {"name": "agent", "image": "agent:1"})
        if "last" in self.injected:
            containers.append({"name": "zone", "image": "zone:1"})
        init: list[Object] = list(pod["spec"].get("initContainers", []))
        if "init" in self.injected:
            init.insert(0, {"name": "rules", "image": "rules:1"})
        if "native" in self.injected:
            init.insert(0, {"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"})
        changed: Object = {"containers": containers} | ({"initContainers": init} if init else {})
        return {**pod, "spec": {**pod["spec"], **changed}}

    def condition(self, type: str) -> tuple[str, str, str]:
        found = {one.type: one for one in self.status.conditions}.get(type)
        return ("", "", "") if found is None else (found.status, found.reason, found.message)

    def active(self) -> list[str]:
        return sorted(
            name
            for name, pod in self.pods.items()
            if pod["metadata"]["labels"][naming.ROLE] == naming.WORKER
            and pod["status"]["phase"] in ("Pending", "Running")
            and name not in self.ended
            and "deletionTimestamp" not in pod["metadata"]
        )
