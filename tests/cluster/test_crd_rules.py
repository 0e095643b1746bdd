"""Every rule and every kind of constraint, accepted and refused by a real API server with the models' own words.

The cases are those of ``tests/unit/api/test_api_rules.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest
from adaptrain_api.crd import Resource

from tests.unit.api.test_api_rules import CASES, IDS, PHASE, job

STRICT = "?dryRun=All&fieldValidation=Strict"


def at(jobs: str, resource: Resource) -> str:
    return f"{jobs.rpartition('/')[0]}/{resource.plural}{STRICT}"


@pytest.mark.parametrize(("resource", "case"), CASES, ids=IDS)
def test_what_holds_is_accepted(api: Callable[..., Any], jobs: str, resource: Resource, case: dict[str, Any]) -> None:
    answer = api("POST", at(jobs, resource), job(case["accept"], resource))
    assert answer.status == 201, answer.message


@pytest.mark.parametrize(("resource", "case"), CASES, ids=IDS)
def test_what_does_not_hold_is_refused(
    api: Callable[..., Any], jobs: str, resource: Resource, case: dict[str, Any]
) -> None:
    answer = api("POST", at(jobs, resource), job(case["reject"], resource))
    assert answer.status in (400, 422), answer.body
    if "server" in case:
        assert case["server"] in answer.message
        return
    causes = [(cause["field"], cause["message"]) for cause in answer.body["details"]["causes"]]
    assert any(
        field.removeprefix("<nil>") == case["field"] and message.endswith(": " + case["rule"])
        for field, message in causes
    ), causes


@pytest.fixture
def made(api: Callable[..., Any], jobs: str) -> Any:
    """A job that is really there."""
    body = job({"metadata": {"name": "made"}, "model": {"name": "mlp", "args": {"depth": 1}}, "seed": 1})
    answer = api("POST", jobs + "?fieldValidation=Strict", body)
    assert answer.ok, answer.message
    yield answer.body
    api("DELETE", f"{jobs}/made")


def patch(api: Callable[..., Any], path: str, body: dict[str, Any]) -> Any:
    return api("PATCH", path, body, kind="application/merge-patch+json")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model", {"name": "resnet"}),
        ("model", {"args": {"depth": 2}}),
        ("model", {"args": {"width": 2}}),
        ("model", {"args": {"depth": None}}),
        ("data", {"name": "m:f"}),
        ("data", {"args": {"path": "/x"}}),
        ("phases", [{**PHASE, "name": "other"}]),
        ("phases", [{**PHASE, "batch": {"size": 9}}]),
        ("phases", [{**PHASE, "augmentation": {}}]),
        ("initialWeights", {"volume": {"persistentVolumeClaim": {"claimName": "a"}}, "path": "a"}),
        ("seed", 2),
        ("seed", None),
    ],
)
def test_what_training_began_with_stays(
    api: Callable[..., Any], jobs: str, made: dict[str, Any], field: str, change: Any
) -> None:
    answer = patch(api, f"{jobs}/made", {"spec": {field: change}})
    assert answer.status == 422, answer.body
    (cause,) = answer.body["details"]["causes"]
    assert cause["field"] == f"spec.{field}"
    assert cause["message"].endswith(f": {field} can't be changed while the job exists: create a new job")


def test_the_number_of_processes_stays(api: Callable[..., Any], jobs: str, made: dict[str, Any]) -> None:
    answer = patch(api, f"{jobs}/made", {"spec": {"workers": {"processesPerWorker": 2}}})
    assert answer.status == 422, answer.body
    assert "processesPerWorker can't be changed while the job exists" in answer.body["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"model": {"name": "mlp"}},
        {"data": {"args": None}},
        {"phases": [PHASE]},
        {"workers": {"min": 2, "max": 3}},
        {"suspend": True},
        {"maxRestarts": 0},
        {"checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "a"}}}},
    ],
)
def test_the_rest_may_change(api: Callable[..., Any], jobs: str, made: dict[str, Any], change: dict[str, Any]) -> None:
    answer = patch(api, f"{jobs}/made", {"spec": change})
    assert answer.ok, answer.message
