"""Nothing is written that a job's uid does not control, and what it controls is kept as it should be."""

import asyncio
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from adaptrain_api.training.job import KIND
from adaptrain_operator import clock
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects import ownership
from adaptrain_operator.kube.kinds import (
    BUDGET,
    CONFIG_MAP,
    JOB,
    POD,
    POLICY,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
)

from tests.support.api_server import NAMESPACE, Site, site
from tests.support.manifests import small_training

Object = dict[str, Any]

SPEC: Object = {"image": "trainer:1", "workers": {"min": 1, "max": 4, "replicas": 2}, **small_training()}
APIS = {BUDGET: "policy/v1", POLICY: "networking.k8s.io/v1"}
CHILDREN: list[tuple[Kind, str, Object]] = [
    (SERVICE_ACCOUNT, "prod-training", {}),
    (CONFIG_MAP, "prod-job", {"data": {"job.json": "theirs", "notes": "precious"}}),
    (SERVICE, "prod-coordinator", {"spec": {"selector": {"app": "web"}, "ports": [{"name": "web", "port": 80}]}}),
    (BUDGET, "prod-workers", {"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}),
    (POLICY, "prod-workers", {"spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}),
    (POLICY, "prod-coordinator", {"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}}),
    (SECRET, "", {"stringData": {"token": "theirs"}}),
]
DEAD = naming.owner("prod", "uid-of-an-earlier-job")
OWNERS: dict[str, list[Object]] = {
    "nobody's": [],
    "another's": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u", "controller": True}],
    "another job's": [naming.owner("other", "uid-of-another-job")],
    "a dead job's": [DEAD],
    "ours, but not our control": [{**DEAD, "uid": "OURS", "controller": False}],
}
IDS = [f"{kind.name}-{name}" for kind, name, _ in CHILDREN]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the operator's time on."""
    ahead = [0.0]
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


def _there(at: Site, kind: Kind, name: str, fields: Object, owners: list[Object], uid: str) -> Object:
    name = name or naming.token_secret("prod", uid)
    owners = [{**owner, "uid": uid if owner["uid"] == "OURS" else owner["uid"]} for owner in owners]
    meta = {"name": name, "ownerReferences": owners, "labels": {"app.kubernetes.io/managed-by": "me"}}
    obj = {"apiVersion": APIS.get(kind, "v1"), "kind": kind.name, "metadata": meta, **fields}
    return deepcopy(at.api.put(kind, obj))


@pytest.mark.parametrize("whose", OWNERS)
@pytest.mark.parametrize(("kind", "name", "fields"), CHILDREN, ids=IDS)
def test_what_is_not_ours_is_left_as_it_is(
    kind: Kind, name: str, fields: Object, whose: str, later: Callable[[float], None]
) -> None:
    async def check() -> None:
        async with site() as at:
            uid = at.submit(**SPEC)["metadata"]["uid"]
            theirs = _there(at, kind, name, fields, OWNERS[whose], uid)
            name_there = theirs["metadata"]["name"]
            for _ in range(3):
                await at.job()
                later(31)
            assert at.api.get(kind, name_there) == theirs
            assert at.api.all(POD) == {}, "no pod runs with what is another's"
            job = at.api.get(JOB, "prod")
            assert job is not None
            assert "nextWorker" not in job["status"], "no number is used up"
            status, reason, message = at.says("PodsReady")
            dead = whose == "a dead job's"
            assert (status, reason) == ("False", ownership.LEAVING if dead else "NameTaken")
            assert f'{kind.name} "{name_there}"' in message
            assert ("garbage collector" if dead else "another name") in message
            # The remedy: it is removed, and the job goes on.
            at.api.remove(kind, name_there)
            later(31)
            await at.job(times=3)
            assert {f"prod-coordinator-{1}", "prod-worker-0", "prod-worker-1"} == at.api.all(POD).keys()
            assert "NameTaken" not in at.says("PodsReady")

    asyncio.run(check())


@pytest.mark.parametrize("whose", OWNERS)
@pytest.mark.parametrize("name", ["prod-worker-0", "prod-coordinator-1"])
def test_anothers_pod_costs_a_number_and_nothing_else(name: str, whose: str) -> None:
    async def check() -> None:
        async with site() as at:
            uid = at.submit(**SPEC)["metadata"]["uid"]
            theirs = _there(at, POD, name, {"spec": {"containers": []}, "status": {}}, OWNERS[whose], uid)
            await at.job(times=4)
            assert at.api.get(POD, name) == theirs
            pods = at.api.all(POD)
            ours = [pod for pod in pods.values() if ownership.controlled(pod, uid)]
            roles = sorted(pod["metadata"]["labels"][naming.ROLE] for pod in ours)
            assert roles == ["coordinator", "worker", "worker"]
            assert len(pods) == 4

    asyncio.run(check())


def test_an_earlier_life_s_objects_and_pods_are_taken_up() -> None:
    async def check() -> None:
        async with site() as at:
            at.submit(**SPEC)
            await at.job()
            before = {key: value for key, value in deepcopy(at.api.objects).items() if key[0] != JOB.plural}
            at.start()
            await at.job()
            assert {key: value for key, value in at.api.objects.items() if key[0] != JOB.plural} == before

    asyncio.run(check())


def _edited(obj: Object) -> Object:
    """As a person would break it."""
    if obj["kind"] == "ConfigMap":
        return {"data": {"job.json": "{}", "more": "x"}}
    if obj["kind"] == "ServiceAccount":
        return {"automountServiceAccountToken": True}
    if obj["kind"] == "Service":
        return {"spec": {**obj["spec"], "selector": {"app": "web"}, "publishNotReadyAddresses": True}}
    if obj["kind"] == "PodDisruptionBudget":
        return {"spec": {**obj["spec"], "maxUnavailable": "50%"}}
    ingress = [{**rule, "from": [{"podSelector": {}}]} for rule in obj["spec"]["ingress"]]
    return {"spec": {**obj["spec"], "ingress": ingress}}


CHANGES: dict[str, Callable[[Site, Kind, str], object]] = {
    "deleted": lambda at, kind, name: at.api.remove(kind, name),
    "edited": lambda at, kind, name: at.api.change(kind, name, **_edited(at.api.objects[kind.plural, NAMESPACE, name])),
    "without labels": lambda at, kind, name: at.api.change(
        kind, name, metadata={**at.api.objects[kind.plural, NAMESPACE, name]["metadata"], "labels": {}}
    ),
}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("kind", "name", "fields"), CHILDREN, ids=IDS)
def test_children_come_back(kind: Kind, name: str, fields: Object, change: str, restarted: bool) -> None:
    async def check() -> None:
        async with site() as at:
            uid = at.submit(**SPEC)["metadata"]["uid"]
            await at.job()
            at.api.all(POD)["prod-coordinator-1"] |= RUNNING
            at.api._touch(at.api.all(POD)["prod-coordinator-1"])
            await at.job()
            there = name or naming.token_secret("prod", uid)
            if kind is SECRET and (change != "deleted" or restarted):
                return  # an immutable one is not edited, and a token that nobody remembers is made anew
            wanted = _meant(at.api.get(kind, there))
            CHANGES[change](at, kind, there)
            if restarted:
                at.start()
            await at.job()
            assert _meant(at.api.get(kind, there)) == wanted
            # And it is content, though nothing tells the operator of a change that it made itself.
            before = len(at.api.writes())
            await at.job()
            assert len(at.api.writes()) == before

    asyncio.run(check())


RUNNING: Object = {
    "status": {
        "phase": "Running",
        "podIP": "127.0.0.2",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "coordinator", "state": {"running": {}}, "ready": True}],
    }
}


def _meant(obj: Object | None) -> Object:
    assert obj is not None
    varies = ("uid", "resourceVersion", "creationTimestamp", "generation")
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key not in varies}}


def test_what_others_add_stays() -> None:
    async def check() -> None:
        async with site() as at:
            at.submit(**SPEC)
            await at.job()
            account = at.api.objects[SERVICE_ACCOUNT.plural, NAMESPACE, "prod-training"]
            meta = {**account["metadata"], "annotations": {"example.com/role": "reader"}}
            pulls = [{"name": "prod-training-dockercfg"}]
            changed = at.api.change(SERVICE_ACCOUNT, "prod-training", metadata=meta, imagePullSecrets=pulls)
            changed = deepcopy(changed)
            await at.job()
            assert at.api.get(SERVICE_ACCOUNT, "prod-training") == changed
            at.api.change(SERVICE_ACCOUNT, "prod-training", automountServiceAccountToken=True)
            await at.job()
            mended = at.api.get(SERVICE_ACCOUNT, "prod-training")
            assert mended is not None
            assert (mended["automountServiceAccountToken"], mended["imagePullSecrets"]) == (False, pulls)
            assert mended["metadata"]["annotations"] == {"example.com/role": "reader"}

    asyncio.run(check())


def test_what_is_not_watched_is_looked_at_once_in_a_resync(later: Callable[[float], None]) -> None:
    async def check() -> None:
        async with site(trust=120) as at:
            at.submit(**SPEC)
            await at.job()
            asked = len(at.api.requests)
            await at.job()
            kinds = {path.split("/")[-2] for _, path, _ in at.api.requests[asked:]}
            assert not kinds & {CONFIG_MAP.plural, SERVICE_ACCOUNT.plural, SECRET.plural}
            at.api.remove(CONFIG_MAP, "prod-job")
            later(121)
            await at.job()
            assert at.api.get(CONFIG_MAP, "prod-job") is not None

    asyncio.run(check())


def test_a_status_is_not_written_on_another_job_of_the_name() -> None:
    async def check() -> None:
        async with site() as at:
            at.submit(**SPEC)
            await at.see()
            at.api.remove(JOB, "prod")
            successor = deepcopy(at.submit(**SPEC))
            with pytest.raises(Exception, match="UID"):
                await at.reconciler.reconcile((NAMESPACE, "prod"))
            assert at.api.get(JOB, "prod") == successor
            assert at.api.all(POD) == {}

    asyncio.run(check())


def test_a_used_up_quota_does_not_hide_what_is_there() -> None:
    async def check() -> None:
        async with site() as at:
            at.submit(**SPEC)
            await at.job()
            at.api.refuse = lambda method, obj: "exceeded quota" if method == "POST" else None
            at.start()
            await at.job()
            assert at.says("PodsReady")[1] != "QuotaExceeded"

    asyncio.run(check())


def test_an_owner_of_another_group_is_no_dead_job() -> None:
    wanted = {"kind": "ConfigMap", "metadata": {"name": "a", "ownerReferences": [naming.owner("prod", "now")]}}
    found = {"metadata": {"ownerReferences": [{**DEAD, "apiVersion": "example.com/v1", "kind": KIND}]}}
    told = ownership.verdict(wanted, found)
    assert told is not None
    assert told[0] == "NameTaken"
    assert json.dumps(told[1])


def test_all_names_that_are_taken_are_told_at_once() -> None:
    async def check() -> None:
        async with site() as at:
            uid = at.submit(**SPEC)["metadata"]["uid"]
            _there(at, SERVICE_ACCOUNT, "prod-training", {}, [DEAD], uid)
            for kind, name, fields in CHILDREN[1:5]:
                _there(at, kind, name, fields, [], uid)
            await at.job()
            _, reason, message = at.says("PodsReady")
            assert reason == "NameTaken"
            assert all(f'{kind.name} "{name}"' in message for kind, name, _ in CHILDREN[:5])
            assert message.index("ServiceAccount") > message.index("ConfigMap")

    asyncio.run(check())


@pytest.mark.parametrize("label", [naming.ROLE, naming.JOB_NAME])
@pytest.mark.parametrize("name", ["prod-worker-0", "prod-coordinator-1"])
def test_a_pod_stays_its_job_s_whatever_its_labels_become(name: str, label: str) -> None:
    async def check() -> None:
        async with site() as at:
            uid = at.submit(**SPEC)["metadata"]["uid"]
            await at.job()
            pod = at.api.objects[POD.plural, NAMESPACE, name]
            meta = {**pod["metadata"], "labels": {**pod["metadata"]["labels"], label: "web"}}
            at.api.change(POD, name, metadata=meta)
            await at.see()
            pods = dict(at.cache.pods((NAMESPACE, "prod"), uid))
            assert len(at.cache.pods((NAMESPACE, "prod"), uid)) == 3
            assert set(pods) == {"worker", "coordinator"}
            [seen] = [one for _, one in at.cache.pods((NAMESPACE, "prod"), uid) if one.name == name]
            assert seen.template_hash == "", "it is replaced as one of another template is"

    asyncio.run(check())
