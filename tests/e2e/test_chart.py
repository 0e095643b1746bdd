"""The chart with a real Helm on a real cluster.

Install and upgrade need images: those of the checkout are built for the local cluster, and with ``CLUSTER=current``
``IMAGE`` and ``TRAINER_IMAGE`` name ones that its nodes can pull.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from adaptrain_api.training.workers import PRIVILEGES

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/adaptrain"
CRDS = ("adaptivetrainingjobs.adaptrain.io", "architecturesearches.adaptrain.io")
MONITORING = ["--api-versions", "monitoring.coreos.com/v1"]

Object = dict[str, Any]

VALUE_SETS: dict[str, Object] = {
    "defaults": {},
    "namespaces": {"watchNamespaces": ["default", "kube-public"], "rbac": {"nodes": False, "aggregate": False}},
    "available": {
        "replicas": 2,
        "podDisruptionBudget": {"enabled": True},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "topology.kubernetes.io/zone"}}
                ]
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "imagePullSecrets": [{"name": "registry"}],
        "podLabels": {"team": "ml"},
        "podAnnotations": {"note": "yes"},
    },
    "guarded": {
        "networkPolicy": {
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "egress": {"enabled": True},
        },
        "service": {"port": 9000, "annotations": {"a": "b"}},
        "serviceAccount": {"name": "trainer", "annotations": {"role": "none"}},
    },
    "foreign": {
        "nameOverride": "ml",
        "fullnameOverride": "train",
        "image": {"repository": "ghcr.io/a/b", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "trainer": {"image": "ghcr.io/a/c:1"},
        "serviceAccount": {"create": False},
        "rbac": {"create": False},
        "dashboards": {"labels": {"grafana_dashboard": "1", "team": "ml"}, "annotations": {"folder": "Training"}},
        "logFormat": "text",
        "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "global": {"anything": 1},
    },
    "little": {
        "crds": {"install": False},
        "networkPolicy": {"enabled": False},
        "dashboards": {"enabled": False},
        "serviceMonitor": {"enabled": False},
        "podMonitor": {"enabled": False},
        "alerts": {"enabled": False},
    },
}

BAD_VALUES = {
    "replicas=-1": "at '/replicas': minimum: got -1, want 0",
    "replicas=two": "at '/replicas': got string, want integer",
    "imgae.tag=3": "additional properties 'imgae' not allowed",
    "image.tagg=3": "at '/image': additional properties 'tagg' not allowed",
    "watchNamespaces={Team_A}": "at '/watchNamespaces/0': 'Team_A' does not match pattern",
    "watchNamespaces=a": "at '/watchNamespaces': got string, want array",
    "logLevel=debug": "value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'",
    "image.digest=latest": "at '/image/digest': 'latest' does not match pattern",
    "resources.limits.memory=lots": "'lots' does not match pattern",
    "tolerations[0].kee=x": "additional properties 'kee' not allowed",
    "service.port=70000": "at '/service/port': maximum: got 70,000, want 65,535",
}

NAMESPACED = {
    ("adaptrain.io", "adaptivetrainingjobs"): {"get", "list", "watch", "create", "update", "delete"},
    ("adaptrain.io", "architecturesearches"): {"get", "list", "watch", "delete"},
    ("adaptrain.io", "adaptivetrainingjobs/status"): {"patch"},
    ("adaptrain.io", "architecturesearches/status"): {"patch"},
    ("", "pods"): {"get", "list", "watch", "create", "delete"},
    ("", "services"): {"get", "list", "watch", "create", "update"},
    ("policy", "poddisruptionbudgets"): {"get", "list", "watch", "create", "update"},
    ("networking.k8s.io", "networkpolicies"): {"get", "list", "watch", "create", "update"},
    ("", "configmaps"): {"get", "create", "update"},
    ("", "serviceaccounts"): {"get", "create", "update"},
    ("", "secrets"): {"create", "get"},
    ("", "persistentvolumeclaims"): {"get"},
    ("", "limitranges"): {"list"},
    ("", "events"): {"create", "update"},
}
"""What the operator does where its jobs are, and so all that it may do."""


def run(*words: str | Path, give: str | None = None, seconds: float = 120, fails: bool = False) -> str:
    """What a program wrote; what it wrote to stderr if it is meant to fail."""
    done = subprocess.run([*map(str, words)], input=give, text=True, capture_output=True, timeout=seconds)
    assert (done.returncode != 0) == fails, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="session")
def helm() -> str:
    from localcluster.api import Cluster

    return str(Cluster().tool("helm"))


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    match os.environ.get("CLUSTER", "local"):
        case "current":
            return os.environ.get("KUBECONFIG", "")
        case "local":
            from localcluster.api import Cluster

            cluster = Cluster()
            nodes = cluster.status().nodes
            if len(nodes) < 2 or not all(node.ready and node.state == "running" for node in nodes):
                cluster.up()
            return str(cluster.kubeconfig)
        case other:
            pytest.fail(f"CLUSTER={other} is not known to these tests: use local or current")


@pytest.fixture(scope="session")
def kubectl(kubeconfig: str) -> list[str]:
    from localcluster.api import Cluster

    return [str(Cluster().tool("kubectl")), *(["--kubeconfig", kubeconfig] if kubeconfig else [])]


@pytest.fixture(scope="session")
def images() -> tuple[str, str]:
    """References of the operator's and the trainer's image."""
    if os.environ.get("CLUSTER", "local") == "current":
        return os.environ["IMAGE"], os.environ["TRAINER_IMAGE"]
    from localcluster.api import Cluster

    cluster, references = Cluster(), []
    for target in ("operator", "trainer"):
        tag = f"adaptrain-{target}:chart-test"
        if target == "operator":
            cluster.image_build(tag, target)
            references.append(cluster.image_load(tag))
        else:
            references.append(f"registry.invalid/{tag}")  # no job of these tests gets as far as pulling it
    return references[0], references[1]


def template(helm: str, values: Object, *more: str, release: str = "adaptrain", namespace: str = "default") -> str:
    return run(
        helm, "template", release, CHART, "--namespace", namespace, "--values", "-", *more, give=yaml.safe_dump(values)
    )


def objects(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]


def only(found: list[Object], kind: str, name: str = "") -> Object:
    (one,) = [each for each in found if each["kind"] == kind and name in each["metadata"]["name"]]
    return one


# What Helm makes of the chart.


def test_lint(helm: str) -> None:
    for values in VALUE_SETS.values():
        run(helm, "lint", "--strict", CHART, "--values", "-", give=yaml.safe_dump(values))


@pytest.mark.parametrize("setting", BAD_VALUES)
def test_bad_values_are_refused_with_their_place(helm: str, setting: str) -> None:
    message = run(helm, "template", CHART, "--set", setting, fails=True)
    assert BAD_VALUES[setting] in message


@pytest.mark.parametrize("name", VALUE_SETS)
def test_api_server_accepts(helm: str, kubectl: list[str], name: str) -> None:
    text = template(helm, VALUE_SETS[name])
    said = run(
        *kubectl, "apply", "--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-",
        give=text,
    )  # fmt: skip
    assert len(said.splitlines()) == len(objects(text))


@pytest.mark.parametrize("name", VALUE_SETS)
def test_everything_is_labelled_and_in_its_namespace(helm: str, name: str) -> None:
    for one in objects(template(helm, VALUE_SETS[name], *MONITORING, namespace="apart")):
        labels = one["metadata"]["labels"]
        for label in ("name", "instance", "component", "part-of", "managed-by"):
            assert labels[f"app.kubernetes.io/{label}"], one["metadata"]["name"]
        if one["kind"] in ("Deployment", "Service", "ServiceMonitor", "PodMonitor", "ServiceAccount", "ConfigMap"):
            assert one["metadata"]["namespace"] == "apart"


def test_crds_are_upgraded_and_kept(helm: str) -> None:
    found = [one for one in objects(template(helm, {})) if one["kind"] == "CustomResourceDefinition"]
    made = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "files/crds").glob("*.yaml"))]
    assert found
    assert [one["spec"] for one in found] == [one["spec"] for one in made]
    assert all(one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for one in found)
    assert "CustomResourceDefinition" not in template(helm, {"crds": {"install": False}})


def _rules(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [rule for one in schema for rule in _rules(one)]
    if not isinstance(schema, dict):
        return []
    own = [one["rule"] for one in schema.get("x-kubernetes-validations", [])]
    return own + [rule for key, one in schema.items() if key != "x-kubernetes-validations" for rule in _rules(one)]


def test_the_crds_allow_what_the_administrator_allows(helm: str) -> None:
    made = objects(template(helm, {"jobs": {"allow": ["hostPath", "root"]}}))
    rules = [rule for one in made if one["kind"] == "CustomResourceDefinition" for rule in _rules(one["spec"])]
    guarded = {match[1]: match[2] for rule in rules if (match := re.match(r"'(\w+)' in (\[.*?\]) \|\| ", rule))}
    assert guarded == {name: f"['{name}']" if name in ("hostPath", "root") else "[]" for name in PRIVILEGES}
    (operator,) = [one for one in made if one["kind"] == "Deployment"]
    env = {one["name"]: one.get("value") for one in operator["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["ADAPTRAIN_OPERATOR_ALLOW"] == "hostPath,root"


@pytest.mark.parametrize(("users", "openshift", "assigned"), [("Auto", False, False), ("Auto", True, True)])
def test_openshift_assigns_users(helm: str, users: str, openshift: bool, assigned: bool) -> None:
    known = ("--api-versions", "security.openshift.io/v1") if openshift else ()
    made = objects(template(helm, {"jobs": {"users": users}}, *known))
    (operator,) = [one for one in made if one["kind"] == "Deployment"]
    pod = operator["spec"]["template"]["spec"]
    env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert env["ADAPTRAIN_OPERATOR_ASSIGNED_USERS"] == str(assigned).lower()
    assert ("runAsUser" in pod["securityContext"]) is not assigned


def test_monitors_are_made_where_their_kinds_are_known(helm: str) -> None:
    without = {one["kind"] for one in objects(template(helm, {}))}
    made = objects(template(helm, {"watchNamespaces": ["a"], "podMonitor": {"labels": {"release": "p"}}}, *MONITORING))
    assert {one["kind"] for one in made} - without == {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    for role in ("coordinator", "worker"):
        monitor = only(made, "PodMonitor", role)
        assert monitor["spec"]["selector"]["matchLabels"]["adaptrain.io/role"] == role
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["a"]}
        assert monitor["metadata"]["labels"]["release"] == "p"
    everywhere = only(objects(template(helm, {}, *MONITORING)), "PodMonitor", "worker")
    assert everywhere["spec"]["namespaceSelector"] == {"any": True}


def test_pods_are_restricted_and_read_only(helm: str) -> None:
    made = objects(template(helm, {}))
    for spec in (only(made, "Deployment")["spec"]["template"]["spec"], only(made, "Pod")["spec"]):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]


def test_dashboards_are_whole(helm: str) -> None:
    maps = [one for one in objects(template(helm, {})) if one["kind"] == "ConfigMap"]
    boards = [json.loads(text) for one in maps for text in one["data"].values()]
    files = [json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))]
    assert boards == files
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in maps)


# Rights.


def rules(roles: list[Object]) -> dict[tuple[str, str], set[str]]:
    """Verbs by group and resource."""
    found: dict[tuple[str, str], set[str]] = {}
    for role in roles:
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def bound(made: list[Object]) -> list[tuple[str, Object]]:
    """Roles that the operator's account has, each with its namespace; empty for the whole cluster."""
    roles = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one for one in made}
    found = []
    for one in made:
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            namespace = one["metadata"].get("namespace")
            kind = one["roleRef"]["kind"]
            role = roles[kind, namespace if kind == "Role" else None, one["roleRef"]["name"]]
            assert [subject["kind"] for subject in one["subjects"]] == ["ServiceAccount"]
            found.append((namespace or "", role))
    return found


def test_rights_are_those_that_are_needed(helm: str) -> None:
    where: dict[str, list[Object]] = {}
    for namespace, role in bound(objects(template(helm, {}, namespace="apart"))):
        where.setdefault(namespace, []).append(role)
    assert rules(where.pop("")) == NAMESPACED | {("", "nodes"): {"list", "watch"}}
    (leader,) = where.pop("apart")
    assert rules([leader]) == {("coordination.k8s.io", "leases"): {"create", "get", "update"}}
    assert [rule.get("resourceNames") for rule in leader["rules"]] == [None, ["adaptrain-operator"]]
    assert rules(where.pop("kube-node-lease")) == {("coordination.k8s.io", "leases"): {"get"}}
    assert not where


def test_rights_in_named_namespaces(helm: str) -> None:
    values: Object = {"watchNamespaces": ["a", "b"]}
    where: dict[str, list[Object]] = {}
    for namespace, role in bound(objects(template(helm, values, namespace="apart"))):
        where.setdefault(namespace, []).append(role)
    assert rules(where[""]) == {("", "nodes"): {"list", "watch"}}
    assert rules(where["a"]) == rules(where["b"]) == NAMESPACED
    less = bound(objects(template(helm, values | {"rbac": {"nodes": False}}, namespace="apart")))
    assert {namespace for namespace, _ in less} == {"a", "b", "apart"}


def test_readme_tells_the_rights() -> None:
    told: dict[str, set[str]] = {}
    for names, verbs in re.findall(r"^\| ([a-z/, ]+) \| ([a-z, ]+) \| ", (CHART / "README.md").read_text(), re.M):
        for name in names.split(", "):
            told[name] = set(verbs.split(", "))
    assert told == {resource: verbs for (_, resource), verbs in NAMESPACED.items()}


# Alerts.


def test_alert_rules(helm: str, tmp_path: Path) -> None:
    from localcluster.api import Cluster

    promtool = Cluster().tool("prometheus").with_name("promtool")
    made = objects(template(helm, {}, *MONITORING, namespace="apart"))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(only(made, "PrometheusRule")["spec"]))
    job = 'job_namespace="ml",job_name="j"'

    def test(at: str, alert: str, series: dict[str, str], fires: bool) -> Object:
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        case: Object = {"eval_time": at, "alertname": alert, "exp_alerts": []}
        # An expected alert must be told with all its texts, so that whether it fires is asked instead.
        expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        samples = [{"labels": "{}", "value": 1}] if fires else []
        promql = [{"expr": expression, "eval_time": at, "exp_samples": samples}]
        return {"interval": "1m", "input_series": inputs, "promql_expr_test": promql} | (
            {} if fires else {"alert_rule_test": [case]}
        )

    step, saved = f"adaptrain_job_step{{{job}}}", f"adaptrain_job_checkpoint_timestamp_seconds{{{job}}}"
    leader = 'adaptrain_operator_leader{namespace="apart"}'
    failed, waiting = (f"adaptrain_operator_job_{what}_timestamp_seconds{{{job}}}" for what in ("failed", "waiting"))
    cases = [
        test("20m", "AdaptrainJobFailed", {failed: "_x15 900x10"}, True),
        test("40m", "AdaptrainJobFailed", {failed: "_x15 900x30"}, False),
        test("20m", "AdaptrainJobFailed", {}, False),
        test("90m", "AdaptrainJobNotRunning", {waiting: "60x100"}, True),
        test("90m", "AdaptrainJobNotRunning", {waiting: "60x50 _x50"}, False),
        test("5m", "AdaptrainJobNotRunning", {waiting: "60x100"}, False),
        test("40m", "AdaptrainJobStalled", {step: "0+10x10 100x40"}, True),
        test("40m", "AdaptrainJobStalled", {step: "0+10x50"}, False),
        test("40m", "AdaptrainJobStalled", {step: "0+10x10 _x40"}, False),
        test("90m", "AdaptrainCheckpointTooOld", {saved: "60x100"}, True),
        test("90m", "AdaptrainCheckpointTooOld", {saved: "0+60x100"}, False),
        test("90m", "AdaptrainCheckpointTooOld", {saved: "0x100"}, False),
        test("10m", "AdaptrainOperatorDown", {leader: "0x20"}, True),
        test("10m", "AdaptrainOperatorDown", {}, True),
        test("10m", "AdaptrainOperatorDown", {leader: "1x20"}, False),
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": cases}))
    run(promtool, "check", "rules", tmp_path / "rules.yaml")
    run(promtool, "test", "rules", tmp_path / "test.yaml")
