"""What users and administrators choose of a job's pods, in namespaces with rules."""

from typing import Any

import pytest
from adaptrain_api.base import ALLOWED
from adaptrain_api.training.job import TrainingJobSpec
from adaptrain_operator.core.defaults import OURS, Bounds, Defaults
from adaptrain_operator.core.objects.owned import network_policies
from adaptrain_operator.core.objects.pods import coordinator_hash, coordinator_pod, template_hash, worker_pod
from adaptrain_operator.core.objects.quantities import bounds_of, quantity, sized
from adaptrain_operator.core.refusals import refusal
from adaptrain_operator.settings import Settings
from pydantic import ValidationError

from tests.support.operator_world import Object, World, make_spec

GIT = {"command": ["python", "a.py"], "source": {"git": {"url": "https://a/b"}}}


@pytest.fixture
def privileged() -> Any:
    ALLOWED.update(("hostPath", "hostNetwork", "serviceAccountName", "capabilities", "root"))
    yield
    ALLOWED.clear()


def made(defaults: Defaults = OURS, **spec: Any) -> tuple[Object, Object]:
    """A worker's pod and a coordinator's."""
    job = World(**spec).job
    return worker_pod(job, 0, "i", (), None, defaults), coordinator_pod(job, 1, "i", None, (), defaults)


def every_container(*pods: Object) -> list[Object]:
    return [one for pod in pods for one in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])]


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), (2, 2.0), ("1Ki", 1024.0), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000.0), ("3k", 3000.0), ("10u", 1e-5)],
)
def test_quantities(text: Any, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize(
    ("given", "bounds", "limits", "requests"),
    [
        ({}, {}, {"cpu": "1", "memory": "256Mi"}, {"cpu": "50m", "memory": "128Mi"}),
        # The user's limit is below our request, and the user's request above our limit.
        ({"limits": {"memory": "64Mi"}}, {}, {"cpu": "1", "memory": "64Mi"}, {"cpu": "50m", "memory": "64Mi"}),
        ({"requests": {"cpu": 2}}, {}, {"cpu": 2, "memory": "256Mi"}, {"cpu": 2, "memory": "128Mi"}),
        # A LimitRange's bounds: what is ours gives way, what is the user's stays and is refused.
        (
            {},
            {"least": {"cpu": "100m", "memory": "300Mi"}},
            {"cpu": "1", "memory": "300Mi"},
            {"cpu": "100m", "memory": "300Mi"},
        ),
        (
            {"requests": {"cpu": "20m"}},
            {"least": {"cpu": "100m"}},
            {"cpu": "1", "memory": "256Mi"},
            {"cpu": "20m", "memory": "128Mi"},
        ),
        (
            {},
            {"most": {"cpu": "500m", "memory": "100Mi"}},
            {"cpu": "500m", "memory": "100Mi"},
            {"cpu": "50m", "memory": "100Mi"},
        ),
        (
            {},
            {"most": {"cpu": "500m"}, "ratio": {"cpu": "2", "memory": "4"}},
            {"cpu": "500m", "memory": "256Mi"},
            {"cpu": "250m", "memory": "128Mi"},
        ),
    ],
)
def test_sizes(given: Object, bounds: Object, limits: Object, requests: Object) -> None:
    spec = make_spec(coordinator={"resources": given})
    assert spec.coordinator is not None
    assert sized(spec.coordinator.resources, OURS.coordinator, Bounds(**bounds)) == {
        "limits": limits,
        "requests": requests,
    }


def test_the_strictest_of_several_limit_ranges_counts() -> None:
    first = {"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": 4}, "maxLimitRequestRatio": {"cpu": "3"}}
    second = {"type": "Container", "min": {"cpu": "1", "memory": "1Gi"}, "max": {"cpu": "2"}}
    pod = {"type": "Pod", "min": {"cpu": 9}, "max": {"cpu": "1m"}}
    ranges: list[Object] = [{"spec": {"limits": [first, pod]}}, {"spec": {"limits": [second]}}, {"spec": {}}]
    assert bounds_of(ranges) == Bounds({"cpu": "1", "memory": "1Gi"}, {"cpu": "2"}, {"cpu": "3"})


@pytest.mark.parametrize("resources", [{}, {"limits": {"cpu": 1, "memory": "2Gi"}}])
@pytest.mark.parametrize("search", [False, True])
def test_a_quota_on_limits_counts_every_container_that_is_ours_to_size(resources: Object, search: bool) -> None:
    workers = {"resources": resources, "initContainers": [{"name": "mine"}]}
    spec: Object = {"workers": workers, "model": None, "data": None, "phases": None, "script": GIT}
    worker, coordinator = made(**spec)
    for container in every_container(worker, coordinator):
        if container["name"] == "worker" and not resources:
            continue  # its size is nobody's but the user's to know
        for part in ("limits", "requests") if container["name"] == "coordinator" else ("limits",):
            assert {"cpu", "memory"} <= container["resources"][part].keys(), container["name"]


def test_the_administrators_defaults() -> None:
    settings = Settings.from_env(
        {
            "ADAPTRAIN_OPERATOR_COORDINATOR_RESOURCES": '{"requests": {"cpu": "10m"}}',
            "ADAPTRAIN_OPERATOR_WORKER_RESOURCES": '{"limits": {"memory": "2Gi", "cpu": 3}}',
            "ADAPTRAIN_OPERATOR_TOLERATIONS": '[{"key": "gpu", "operator": "Exists"}]',
            "ADAPTRAIN_OPERATOR_ASSIGNED_USERS": "true",
            "ADAPTRAIN_OPERATOR_ALLOW": "hostPath, nfs",
        }
    )
    assert settings.allow == ("hostPath", "nfs")
    worker, coordinator = made(settings.defaults)
    assert coordinator["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "10m"}}
    assert worker["spec"]["containers"][0]["resources"] == {"limits": {"memory": "2Gi", "cpu": 3}}
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in worker["spec"]["containers"][0]["env"]
    for pod in (worker, coordinator):
        assert {"key": "gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["spec"]["securityContext"].keys()
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    with pytest.raises(ValidationError, match="known are hostPath"):
        Settings.from_env({"ADAPTRAIN_OPERATOR_ALLOW": "hostIPC"})


def test_fields_that_people_need(privileged: None) -> None:
    workers = {
        "runtimeClassName": "nvidia",
        "serviceAccountName": "team",
        "schedulerName": "volcano",
        "priorityClassName": "high",
        "sharedMemory": "8Gi",
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [44]},
        "volumes": [{"name": "a", "emptyDir": {}}],
        "initContainers": [
            {"name": "mine", "args": ["x"], "volumeMounts": [{"name": "a", "mountPath": "/a"}]},
            {"name": "beside", "image": "other:1", "restartPolicy": "Always"},
        ],
        "envFrom": [{"secretRef": {"name": "keys"}}],
    }
    worker, coordinator = (pod["spec"] for pod in made(workers=workers))
    assert (worker["runtimeClassName"], worker["serviceAccountName"]) == ("nvidia", "team")
    assert (coordinator["serviceAccountName"], worker["schedulerName"]) == ("job-training", "volcano")
    assert coordinator["schedulerName"] == "volcano"
    assert {"name": "adaptrain-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in worker["volumes"]
    assert {"name": "a", "emptyDir": {}} in worker["volumes"]
    for pod in (worker, coordinator):
        assert pod["automountServiceAccountToken"] is False
        found = pod["securityContext"]
        assert (found["runAsUser"], found["runAsGroup"], found["fsGroup"]) == (1000, 10001, 2000)
        assert found["supplementalGroups"] == [44]
    mine, beside = worker["initContainers"]
    assert (mine["image"], mine["args"], beside["image"], beside["restartPolicy"]) == ("i", ["x"], "other:1", "Always")
    for container in (mine, beside):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.usefixtures("privileged")
def test_what_the_administrator_allows() -> None:
    security = {"runAsUser": 0, "fsGroup": 5, "capabilities": {"add": ["IPC_LOCK"]}}
    volumes = [{"name": "disk", "hostPath": {"path": "/mnt"}}]
    worker, coordinator = made(workers={"hostNetwork": True, "securityContext": security, "volumes": volumes})
    assert worker["spec"]["hostNetwork"] is True
    assert worker["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert worker["spec"]["securityContext"]["runAsUser"] == 0
    assert worker["spec"]["securityContext"]["runAsNonRoot"] is False
    capabilities = worker["spec"]["containers"][0]["securityContext"]["capabilities"]
    assert capabilities == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert volumes[0] in worker["spec"]["volumes"]
    policies = {
        one["metadata"]["name"]: one["spec"]["ingress"]
        for one in network_policies(World(workers={"hostNetwork": True}).job)
    }
    assert all("from" not in rule for rule in policies["job-coordinator"]), "they come from their nodes' addresses"
    assert "from" in network_policies(World().job)[0]["spec"]["ingress"][0]
    # The coordinator needs none of it.
    assert "hostNetwork" not in coordinator["spec"]
    assert coordinator["spec"]["securityContext"]["runAsUser"] == 10001
    assert coordinator["spec"]["securityContext"]["fsGroup"] == 5
    assert "add" not in coordinator["spec"]["containers"][0]["securityContext"]["capabilities"]
    image_user, _ = made(workers={"securityContext": {"runAsNonRoot": False}})
    assert "runAsUser" not in image_user["spec"]["securityContext"]


def test_what_the_administrator_does_not_allow_is_refused_by_name() -> None:
    ALLOWED.add("nfs")
    try:
        make_spec(workers={"volumes": [{"name": "a", "nfs": {}}]})
        with pytest.raises(ValidationError, match=r"ask for hostPath in the chart's value jobs\.allow"):
            make_spec(workers={"volumes": [{"name": "a", "hostPath": {}}]})
    finally:
        ALLOWED.clear()


def test_no_template_of_a_running_job_changes_with_the_operator() -> None:
    """Its workers would be replaced one by one at the operator's upgrade: these hashes are of release 0.1."""
    old = {
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
        "envFrom": [{"configMapRef": {"name": "mine"}}],
        "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "c"}}],
        "volumeMounts": [{"name": "a", "mountPath": "/a"}],
    }
    job = World(workers=old).job
    assert template_hash(job) == "f0416addf49a4aa2"
    assert coordinator_hash(job) == "8ce30b90cb56c6b3"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "a" is forbidden: exceeded quota: q, requested: limits.cpu=1, used: limits.cpu=4', "QuotaExceeded"),
        ('pods "a" is forbidden: failed quota: q: must specify limits.cpu for: worker', "QuotaNeedsResources"),
        (
            'pods "a" is forbidden: error looking up service account ns/team: serviceaccount "team" not found',
            "ServiceAccountNotFound",
        ),
        ('pods "a" is forbidden: no PriorityClass with name x was found', "PriorityClassNotFound"),
        ('pods "a" is forbidden: pod rejected: RuntimeClass "x" not found', "RuntimeClassNotFound"),
        (
            'pods "a" is forbidden: minimum cpu usage per Container is 100m, but request is 50m',
            "OutsideLimitRange",
        ),
        (
            'pods "a" is forbidden: [maximum memory usage per Pod is 1Gi, but limit is 2147483648]',
            "OutsideLimitRange",
        ),
        (
            'pods "a" is forbidden: memory max limit to request ratio per Container is 1, but provided ratio is 2',
            "OutsideLimitRange",
        ),
        ('pods "a" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes', "PodSecurityViolated"),
        (
            'pods "a" is forbidden: unable to validate against any security context constraint: [...]',
            "SecurityContextRefused",
        ),
        (
            "pod tolerations (possibly merged with namespace defaults) conflict with its namespace whitelist",
            "TolerationsForbidden",
        ),
        ('admission webhook "policy.example.com" denied the request: no', "WebhookDenied"),
        ('pods "a" is forbidden: because', "PodForbidden"),
    ],
)
def test_refusals_say_which_rule_and_what_to_do(message: str, reason: str) -> None:
    found, words = refusal(403, message)
    assert found == reason
    assert message in words
    assert len(words) > len(message) + 40
    assert refusal(422, "spec.x: Invalid value")[0] == "PodRefused"


def test_a_spec_of_before_is_read() -> None:
    TrainingJobSpec.model_validate(
        {"script": {"command": ["a"]}, "workers": {"envFrom": [{"secretRef": {"name": "a"}}]}}
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [("labels", "app"), ("labels", "example.com/app"), ("annotations", "k8s.v1.cni.cncf.io/networks")],
)
def test_no_job_makes_its_pods_part_of_what_is_another_s(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=f"ask for {name} in the chart's value jobs.allow"):
        make_spec(workers={name: {key: "payments"}})
    assert make_spec(workers={name: {"jobs.adaptrain.io/team": "payments"}})
    monkeypatch.setattr("adaptrain_api.base.ALLOWED", {name})
    assert make_spec(workers={name: {key: "payments"}})
