"""Namespaces that refuse pods: what the operator asks for then, in which order, and what it tells."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from adaptrain_operator import clock
from adaptrain_operator.controllers.job import Reconciler
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects.quantities import quantity
from adaptrain_operator.core.observed import Problem
from adaptrain_operator.kube.kinds import JOB
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.coordinator_poller import CoordinatorPoller
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.node_leases import NodeLeases
from adaptrain_operator.runtime.workqueue import Queue

from tests.support.manifests import small_training
from tests.support.operator_world import T0, Object, World, stamp
from tests.support.small_api import SmallApi

KEY = ("ns", "job")
JOB_PATH = JOB.path("ns", "job")
SIZE = {"requests": {"cpu": "100m", "memory": "300Mi"}, "limits": {"cpu": "500m", "memory": "700Mi"}}


class Operator:
    """A reconciler beside an API server, and a clock that goes as the test says."""

    def __init__(self, api: SmallApi) -> None:
        self.api = api
        self.now = T0

    async def start(self, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> None:
        monkeypatch.setattr(clock, "now", lambda: self.now)
        client = await self.api.client()
        workers = {"min": 1, "max": 2, "replicas": 2, "resources": SIZE}
        meta = {"name": "job", "namespace": "ns", "generation": 1, "creationTimestamp": stamp(T0)}
        body = {"metadata": meta, "spec": {"workers": workers, **small_training(), **spec}, "status": {}}
        self.cache, self.events = Cache(), Events(client, "test")
        self.cache.put(JOB, self.api.put(JOB_PATH, body))
        puller = CoordinatorPoller(changed=lambda key: None, distrusted=lambda key: None)
        self.reconciler = Reconciler(client, self.cache, Queue(), puller, NodeLeases(client), self.events, "trainer:1")
        self.client = client

    async def decide(self, seconds: float = 1.0) -> None:
        await self.reconciler.reconcile(KEY)
        self.now += seconds

    def pods(self) -> list[str]:
        return [one["metadata"]["name"] for one in self.api.made("pods")]

    async def told(self) -> set[str]:
        """Reasons of the events that were told."""
        sending = asyncio.create_task(self.events.send())
        await asyncio.sleep(0.1)
        sending.cancel()
        return {one["reason"] for one in self.api.made("events")}

    def condition(self) -> tuple[str, str]:
        conditions = self.api.objects[JOB_PATH]["status"]["conditions"]
        found = next(one for one in conditions if one["type"] == "PodsReady")
        return found["reason"], found["message"]


def run(monkeypatch: pytest.MonkeyPatch, check: Callable[[Operator], Awaitable[None]], **spec: Any) -> None:
    async def main() -> None:
        operator = Operator(SmallApi())
        await operator.start(monkeypatch, **spec)
        try:
            await check(operator)
        finally:
            await operator.client.close()
            await operator.api.close()

    asyncio.run(main())


def role(pod: Object) -> str:
    found: str = pod["metadata"]["labels"][naming.ROLE]
    return found


def test_where_the_coordinator_is_refused_no_worker_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(plural: str, body: Object) -> str | None:
        if plural != "pods" or role(body) != naming.COORDINATOR:
            return None
        return 'pods "job-coordinator-1" is forbidden: exceeded quota: q, requested: limits.cpu=1'

    async def check(operator: Operator) -> None:
        operator.api.admit = admit
        for _ in range(6):
            await operator.decide(40)
        assert operator.pods() == []
        assert operator.condition()[0] == "QuotaExceeded"
        assert "exceeded quota: q" in operator.condition()[1]
        told = await operator.told()
        assert not {"WorkersCreated", "CoordinatorReplaced"} & told, "there never were such pods"
        operator.api.admit = lambda plural, body: None
        await operator.decide(40)
        assert [name.rsplit("-", 1)[0] for name in operator.pods()] == ["job-coordinator"]
        await operator.decide()
        assert [name.rsplit("-", 1)[0] for name in operator.pods()] == ["job-coordinator", "job-worker", "job-worker"]
        assert "WorkersCreated" in await operator.told()

    run(monkeypatch, check)


def test_a_quota_on_limits_admits_a_job_whose_workers_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(plural: str, body: Object) -> str | None:
        if plural != "pods":
            return None
        for container in (*body["spec"].get("initContainers", ()), *body["spec"]["containers"]):
            for part in ("limits", "requests"):
                for name in {"cpu", "memory"} - container["resources"].get(part, {}).keys():
                    return f"pods is forbidden: failed quota: q: must specify {part}.{name} for: {container['name']}"
        return None

    async def check(operator: Operator) -> None:
        operator.api.admit = admit
        await operator.decide()
        assert len(operator.pods()) == 3

    script = {"command": ["python", "a.py"], "source": {"git": {"url": "https://a/b"}}}
    run(monkeypatch, check, model=None, data=None, phases=None, script=script)


def test_what_is_ours_to_choose_gives_way_to_a_limit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    least = {"cpu": "100m", "memory": "200Mi"}

    def admit(plural: str, body: Object) -> str | None:
        if plural != "pods":
            return None
        requests = body["spec"]["containers"][0]["resources"]["requests"]
        for name, value in least.items():
            if quantity(requests[name]) < quantity(value):
                return (
                    f"pods is forbidden: minimum {name} usage per Container is {value}, but request is {requests[name]}"
                )
        return None

    async def check(operator: Operator) -> None:
        operator.api.admit = admit
        limits = {"spec": {"limits": [{"type": "Container", "min": least}]}}
        operator.api.put("/api/v1/namespaces/ns/limitranges/l", {"metadata": {"name": "l"}, **limits})
        await operator.decide()
        assert operator.pods() == []
        for _ in range(3):
            await operator.decide()
        assert len(operator.pods()) == 3

    run(monkeypatch, check)


def test_another_controllers_job_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(operator: Operator) -> None:
        for _ in range(3):
            await operator.decide()
        assert operator.api.changes == []
        assert operator.api.objects[JOB_PATH]["status"] == {}

    run(monkeypatch, check, managedBy="kueue.x-k8s.io/multikueue")
    run(monkeypatch, check, managedBy="example.com/other", model={"name": 1})  # nor is one that we can't read


def test_a_job_that_says_it_is_ours_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(operator: Operator) -> None:
        await operator.decide()
        assert len(operator.pods()) == 3

    run(monkeypatch, check, managedBy="adaptrain.io/operator")


def test_a_webhook_that_changes_what_we_write_is_not_fought(monkeypatch: pytest.MonkeyPatch) -> None:
    def mutate(plural: str, body: Object) -> Object:
        if plural not in ("services", "networkpolicies", "poddisruptionbudgets"):
            return body
        return {**body, "spec": {**body["spec"], "minAvailable": 9, "sessionAffinity": "ClientIP", "ingress": []}}

    async def check(operator: Operator) -> None:
        operator.api.mutate = mutate
        for _ in range(30):
            await operator.decide(0.5)
        writes = [one for one in operator.api.changes if one.startswith("PUT") and "/status" not in one]
        assert len(writes) <= 4, "each of them once"
        # Later they are tried again: the webhook may be gone.
        operator.api.mutate = lambda plural, body: body
        operator.now += 200
        await operator.decide()
        assert all(one["spec"]["ingress"] for one in operator.api.made("networkpolicies"))

    run(monkeypatch, check)


def unschedulable(world: World) -> None:
    world.pods["job-coordinator-1"]["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: 3 Insufficient cpu."}],
    }


def test_workers_let_go_of_the_room_that_their_coordinator_needs() -> None:
    world = World()
    world.step()
    unschedulable(world)
    world.start("job-worker-0", "job-worker-1")
    world.now += 20
    assert world.step().delete == []
    world.now += 20
    assert sorted(one.name for one in world.step().delete) == ["job-worker-0", "job-worker-1"]
    world.pods = {"job-coordinator-1": world.pods["job-coordinator-1"]}
    world.now += 20
    assert world.step().create == []
    assert world.condition("PodsReady")[1] == "Unschedulable"
    assert "the coordinator is pending" in world.condition("PodsReady")[2]
    world.pods["job-coordinator-1"]["status"] = {"phase": "Pending"}
    world.start("job-coordinator-1")
    assert len(world.step().create) == 2


def test_workers_that_train_go_on_without_a_coordinator(world: World) -> None:
    del world.pods["job-coordinator-1"]
    world.problem = Problem("QuotaExceeded", "exceeded quota", world.now, world.now)
    for _ in range(10):
        world.now += 20
        plan = world.decide()
        assert plan.delete == []
        assert all(pod["metadata"]["labels"][naming.ROLE] == naming.COORDINATOR for pod in plan.create)


def test_a_job_that_never_begins_fails_in_time_and_says_why() -> None:
    world = World(preRunningDeadlineSeconds=60)
    world.step()
    unschedulable(world)
    plan = world.step()
    assert plan.requeue_after is not None
    assert plan.requeue_after <= 60
    world.now += 59
    world.step()
    assert world.condition("Failed") == ("", "", "")
    world.now += 2
    world.step()
    status, reason, message = world.condition("Failed")
    assert (status, reason) == ("True", "PreRunningDeadlineExceeded")
    assert "preRunningDeadlineSeconds (60 s)" in message
    assert "Unschedulable" in message


def test_a_job_that_began_is_not_failed_by_that_deadline_again() -> None:
    world = World(preRunningDeadlineSeconds=60)
    world.settle()
    assert world.status.running_time is not None
    world.pods.clear()
    world.progress = None
    world.now += 1000
    world.step()
    assert world.condition("Failed") == ("", "", "")


def test_a_suspended_job_has_its_time_anew() -> None:
    world = World(preRunningDeadlineSeconds=60, suspend=True)
    world.now += 1000
    world.step()
    assert world.condition("Failed") == ("", "", "")
    world.spec = World(preRunningDeadlineSeconds=60).spec
    world.step()
    world.now += 59
    world.step()
    assert world.condition("Failed") == ("", "", "")
    world.now += 2
    world.step()
    assert world.condition("Failed")[1] == "PreRunningDeadlineExceeded"
