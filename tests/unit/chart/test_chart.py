"""The chart's files agree with each other. What Helm and a cluster make of them is tested in tests/e2e."""

import json
import re
import runpy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CHART = ROOT / "charts/adaptrain"
GENERATE = runpy.run_path(str(ROOT / "charts/generate.py"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
FREE = {"nodeAffinity", "podAffinity", "podAntiAffinity", "global"}
"""Not ours: the API server checks them, or nobody."""


def test_values_and_readme_follow_from_the_schema() -> None:
    stale = [path.name for path, text in GENERATE["wanted"]().items() if path.read_text() != text]
    assert not stale, "run python charts/generate.py"


def test_values_hold_exactly_what_the_schema_describes() -> None:
    def paths(values: Any, schema: dict[str, Any]) -> Iterator[str]:
        for name, value in values.items():
            inner = schema["properties"][name]
            if "default" in inner:
                assert value == inner["default"]
                yield name
            else:
                yield from (f"{name}.{rest}" for rest in paths(value, inner))

    found = set(paths(yaml.safe_load((CHART / "values.yaml").read_text()), SCHEMA))
    described = {".".join(path) for path, _ in GENERATE["values"](SCHEMA)}
    assert found == described
    in_readme = set(re.findall(r"^\| `([\w.]+)` \| `", (CHART / "README.md").read_text(), re.M))
    assert in_readme == described


def test_what_may_be_allowed_is_what_the_crds_guard() -> None:
    from adaptrain_api.training.workers import PRIVILEGES

    assert tuple(SCHEMA["properties"]["jobs"]["properties"]["allow"]["items"]["enum"]) == PRIVILEGES
    for made in (ROOT / "crds").glob("*.yaml"):
        text = json.dumps(yaml.safe_load(made.read_text()))
        assert {name for name in PRIVILEGES if f"'{name}' in [] ||" in text} == set(PRIVILEGES), made.name


def test_schema_is_strict_and_tells_what_each_value_means() -> None:
    def visit(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        name = path.rsplit(".", 1)[-1]
        if node.get("type") == "object" and name not in FREE:
            assert "additionalProperties" in node, path
            assert node["additionalProperties"] is not True, path
        if node.get("type") == "array":
            assert "items" in node, path
        for key, inner in node.get("properties", {}).items():
            visit(inner, f"{path}.{key}")
        for key in ("items", "additionalProperties"):
            visit(node.get(key), f"{path}.{key}")

    visit(SCHEMA, "values")
    for name, definition in SCHEMA["$defs"].items():
        visit(definition, name)
    for path, inner in GENERATE["values"](SCHEMA):
        assert re.fullmatch(r"[A-Z].*[^ ]\.", inner["description"]), path


def test_templates_use_every_value_and_no_other() -> None:
    templates = {path: path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()}
    used = {name for text in templates.values() for name in re.findall(r"\.Values\.([A-Za-z.]+)", text)}
    known = {".".join(path) for path, _ in GENERATE["values"](SCHEMA)} - {"global"}
    assert used == known


def test_chart_holds_the_generated_crds() -> None:
    for made in (ROOT / "crds").glob("*.yaml"):
        assert (CHART / "files/crds" / made.name).read_text() == made.read_text()


def test_operator_knows_its_variables() -> None:
    from adaptrain_operator.settings import PREFIX, Settings

    given = re.findall(rf"name: {PREFIX}([A-Z_]+)", (CHART / "templates/deployment.yaml").read_text())
    # The two that are left have the values that ports and probes of the pod expect.
    assert {name.lower() for name in given} == set(Settings.model_fields) - {"host", "port"}
    assert Settings.model_fields["port"].default == 8080


def test_ports_of_the_monitors_are_named_in_the_pods() -> None:
    monitors = (CHART / "templates/monitors.yaml").read_text()
    pods = (ROOT / "operator/adaptrain_operator/core/objects/pods.py").read_text()
    ports = re.search(r'dict "coordinator" "(\w+)" "worker" "(\w+)"', monitors)
    assert ports is not None
    for port in ports.groups():
        assert f'"name": "{port}", "containerPort"' in pods


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_image_runs_as_the_user_that_pods_ask_for(target: str) -> None:
    from adaptrain_operator.core.objects.pod_parts import USER

    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)
    (stage,) = [text for text in stages if text.splitlines()[0].endswith(f" AS {target}")]
    assert f"USER {USER}:{USER}\n" in stage
    assert "ENTRYPOINT []\n" in stage


def test_guides_name_values_and_alerts_that_exist() -> None:
    known = {".".join(path) for path, _ in GENERATE["values"](SCHEMA)}
    text = "".join((ROOT / "docs/how-to" / name).read_text() for name in ("install.md", "monitoring.md"))
    named = re.findall(r"--set '?([\w.]+)=", text)
    named += re.findall(r"`((?:image|alerts|rbac|crds|networkPolicy|dashboards)\.[\w.]+)`", text)
    for name in named:
        assert any(name == value or name.startswith(f"{value}.") for value in known), name
    alerts = set(re.findall(r"alert: (\w+)", (CHART / "templates/alerts.yaml").read_text()))
    assert set(re.findall(r"^\| (Adaptrain\w+) \|", text, re.M)) == alerts
