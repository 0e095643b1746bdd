"""Every rule and every kind of constraint in Python, and the sentences that a user gets.

``tests/cluster/test_crd_rules.py`` asks a real API server the same cases.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from adaptrain_api.crd import JOB, RESOURCES, SEARCH, Resource, custom_resource_definition
from adaptrain_api.errors import explain
from adaptrain_api.training.job import AdaptiveTrainingJob
from pydantic import ValidationError

FILES = ((JOB, "test_api_cases.yaml"), (SEARCH, "test_search_api_cases.yaml"))
CASES: list[tuple[Resource, dict[str, Any]]] = [
    (resource, case) for resource, name in FILES for case in yaml.safe_load(Path(__file__).with_name(name).read_text())
]
IDS = [f"{number}-{case.get('constraint', case.get('field'))}" for number, (_, case) in enumerate(CASES)]


PHASE = {
    "name": "train",
    "type": "supervised",
    "optimizer": {"learningRate": 0.001},
    "batch": {"size": 8},
    "stop": {"epochs": 1},
}


def smallest(resource: Resource = JOB) -> dict[str, Any]:
    specs: dict[str, dict[str, Any]] = {
        "AdaptiveTrainingJob": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE]},
        "ArchitectureSearch": {
            "space": {"parameters": [{"name": "model.args.width", "values": [8, 16]}]},
            "objectives": [{"metric": "val/accuracy", "goal": "maximize"}],
            "budget": {"trials": 10},
            "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE]},
        },
    }
    return {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": resource.kind,
        "metadata": {"name": "job"},
        "spec": copy.deepcopy(specs[resource.kind]),
    }


def job(case: dict[str, Any], resource: Resource = JOB) -> dict[str, Any]:
    """The smallest job with a case's fields, less those ``without``; a phase's are merged into its only phase."""
    made, change = smallest(resource), copy.deepcopy(case)
    for field in change.pop("without", ()):
        del made["spec"][field]
    made["metadata"].update(change.pop("metadata", {}))
    if change.get("phases"):
        change["phases"] = [{**made["spec"]["phases"][0], **change["phases"][0]}]
    made["spec"].update(change)
    return made


@pytest.mark.parametrize(("resource", "case"), CASES, ids=IDS)
def test_what_holds_is_accepted(resource: Resource, case: dict[str, Any]) -> None:
    resource.model.model_validate(job(case["accept"], resource))


@pytest.mark.parametrize(("resource", "case"), CASES, ids=IDS)
def test_what_does_not_hold_is_refused_in_one_sentence(resource: Resource, case: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        resource.model.model_validate(job(case["reject"], resource))
    assert explain(refusal.value) == case.get("python", f"{case.get('field') or resource.noun}: {case.get('rule')}")


def rules(schema: dict[str, Any]) -> set[str]:
    found = {rule["message"] for rule in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]}
    for sub in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        found |= rules(sub) if sub else set()
    return found


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
def test_no_rule_is_without_cases(resource: Resource) -> None:
    schema = custom_resource_definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    cased = {case.get("rule", case.get("server")) for _, case in CASES}
    assert rules(schema) <= cased


def test_all_mistakes_are_told_at_once() -> None:
    broken = job({"workers": {"min": 0, "mxa": 2}, "seed": -1})
    broken["spec"]["phases"][0]["stop"] = {}
    with pytest.raises(ValidationError) as refusal:
        AdaptiveTrainingJob.model_validate(broken)
    assert explain(refusal.value).splitlines() == [
        "spec.workers.min: must be at least 1 (got 0)",
        "spec.workers.mxa: unknown field: did you mean max?",
        "spec.phases[0].stop: stop needs epochs or steps, so that training has an end",
        "spec.seed: must be at least 0 (got -1)",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"zzz": 1}, "spec.zzz: unknown field: known here are image, imagePullPolicy, "),
        (
            {"workers": {"labels": {"jobs.adaptrain.io/a b": "c"}}},
            "spec.workers.labels: keys must look like name or example.com/name",
        ),
        ({"workers": {"labels": {"a.b/c": 1}}}, 'spec.workers.labels["a.b/c"]: must be a string: put it in quotes'),
        ({"workers": {"labels": {1: "c"}}}, "spec.workers.labels[1] (key): must be a string: put it in quotes"),
        ({"model": {"name": "mlp", "args": {"a": float("nan")}}}, "spec.model.args: can't hold nan, which JSON has no"),
        ({"model": {"name": "mlp", "args": {"a": {1: 2}}}}, "spec.model.args: must have strings for keys"),
        ({"phases": [{"optimizer": {"learningRate": float("inf")}}]}, "spec.phases[0].optimizer.learningRate: must be"),
        ({"phases": [{"optimizer": {"learningRate": 10**400}}]}, "spec.phases[0].optimizer.learningRate: must be a n"),
        ({"image": "x" * 2000}, "spec.image: must have at most 1024 characters (got 2000)"),
        ({"image": b"a"}, "spec.image: must be a string"),
    ],
)
def test_what_only_a_file_can_hold_is_explained_too(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        AdaptiveTrainingJob.model_validate(job(change))
    text = explain(refusal.value)
    assert text.startswith(line), text
    assert "pydantic" not in text
    assert "\n" not in text


def test_a_manifest_that_is_no_object() -> None:
    with pytest.raises(ValidationError) as refusal:
        AdaptiveTrainingJob.model_validate([])
    assert explain(refusal.value) == "the job: must be an object (got [])"
