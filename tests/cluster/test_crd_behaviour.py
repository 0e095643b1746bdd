"""What the CRD promises beside validation: defaults, scale, status, columns, names."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from adaptrain_api.base import dump
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_api.training.status import TrainingJobStatus

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
MERGE = "application/merge-patch+json"
JOB: dict[str, Any] = {
    "apiVersion": "adaptrain.io/v1alpha1",
    "kind": "AdaptiveTrainingJob",
    "metadata": {"name": "digits"},
    "spec": {
        "workers": {"min": 1, "max": 3},
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "phases": [
            {
                "name": "train",
                "type": "supervised",
                "optimizer": {"learningRate": 0.001},
                "batch": {"size": 8},
                "stop": {"epochs": 1, "earlyStopping": {}},
            }
        ],
    },
}
STATUS = {
    "phase": "Running",
    "replicas": 3,
    "readyReplicas": 2,
    "workers": "2/3",
    "step": 120,
    "metric": "val/accuracy 0.91",
    "eta": "3m",
    "selector": "adaptrain.io/job-name=digits",
    "conditions": [
        {
            "type": "PodsReady",
            "status": "False",
            "reason": "Rescaling",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
    ],
}


@pytest.fixture
def job(api: Callable[..., Any], jobs: str) -> Iterator[str]:
    """The path of a job that is really there."""
    answer = api("POST", jobs, JOB)
    assert answer.ok, answer.message
    yield f"{jobs}/digits"
    api("DELETE", f"{jobs}/digits")


def test_defaults_are_stored_as_the_models_have_them(api: Callable[..., Any], job: str) -> None:
    stored = api("GET", job).body
    assert stored["spec"] == dump(AdaptiveTrainingJob.model_validate(JOB))["spec"]
    assert stored["spec"]["workers"]["terminationGracePeriodSeconds"] == 30
    assert stored["spec"]["phases"][0]["stop"]["earlyStopping"] == {"metric": "val/accuracy", "patience": 5}
    assert "replicas" not in stored["spec"]["workers"]
    read = AdaptiveTrainingJob.model_validate(stored)
    assert read.spec == AdaptiveTrainingJob.model_validate(JOB).spec


def test_a_job_without_workers_gets_all_their_defaults(api: Callable[..., Any], jobs: str) -> None:
    bare = {**JOB, "metadata": {"name": "bare"}, "spec": {k: v for k, v in JOB["spec"].items() if k != "workers"}}
    answer = api("POST", f"{jobs}?dryRun=All&fieldValidation=Strict", bare)
    assert answer.ok, answer.message
    assert answer.body["spec"]["workers"]["max"] == 1
    assert answer.body["spec"] == dump(AdaptiveTrainingJob.model_validate(bare))["spec"]


def test_scale_reads_and_writes_replicas(api: Callable[..., Any], job: str) -> None:
    api("PATCH", f"{job}/status", {"status": STATUS}, kind=MERGE)
    answer = api("PATCH", f"{job}/scale", {"spec": {"replicas": 2}}, kind=MERGE)  # kubectl scale
    assert answer.ok, answer.message
    assert api("GET", job).body["spec"]["workers"]["replicas"] == 2
    scale = api("GET", f"{job}/scale").body
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 3, "selector": "adaptrain.io/job-name=digits"}
    answer = api("PUT", f"{job}/scale", {**scale, "spec": {"replicas": 3}})  # an autoscaler
    assert answer.ok, answer.message
    assert api("GET", job).body["spec"]["workers"]["replicas"] == 3


def test_an_autoscaler_needs_replicas_in_the_spec(api: Callable[..., Any], job: str) -> None:
    # It reads before it writes, and the API server can't show a scale without them. The field's description says so.
    answer = api("GET", f"{job}/scale")
    assert not answer.ok
    assert 'the spec replicas field ".spec.workers.replicas" does not exist' in answer.message


def test_scale_stays_within_the_bounds(api: Callable[..., Any], job: str) -> None:
    answer = api("PATCH", f"{job}/scale", {"spec": {"replicas": 4}}, kind=MERGE)
    assert answer.status == 422
    assert "workers.replicas must lie between workers.min and workers.max: change it or widen" in answer.message


def test_status_is_apart_from_spec(api: Callable[..., Any], job: str) -> None:
    api("PATCH", job, {"status": {"phase": "Failed"}}, kind=MERGE)
    assert "status" not in api("GET", job).body
    answer = api("PATCH", f"{job}/status", {"status": STATUS, "spec": {"suspend": True}}, kind=MERGE)
    assert answer.ok, answer.message
    stored = api("GET", job).body
    assert stored["spec"]["suspend"] is False
    assert stored["metadata"]["generation"] == 1
    assert TrainingJobStatus.model_validate(stored["status"]) == TrainingJobStatus.model_validate(STATUS)


def test_every_status_that_the_model_writes_is_taken(api: Callable[..., Any], job: str) -> None:
    written = dump(TrainingJobStatus.model_validate({**STATUS, "loss": float("nan"), "epoch": 0, "restarts": 0}))
    manager = "?fieldManager=adaptrain-tests&force=true&fieldValidation=Strict"
    body = {"apiVersion": JOB["apiVersion"], "kind": JOB["kind"], "status": written}
    answer = api("PATCH", f"{job}/status{manager}", body, kind="application/apply-patch+yaml")
    assert answer.ok, answer.message


def test_status_drops_what_it_does_not_know(api: Callable[..., Any], job: str) -> None:
    answer = api("PATCH", f"{job}/status", {"status": {"news": 1, "step": 2, "loss": None}}, kind=MERGE)
    assert answer.ok, answer.message
    known = {
        "step": 2,
        "conditions": [],
        "avoidedNodes": [],
        "recentChanges": [],
        "failedWorkers": [],
        "metrics": {},
        "phases": [],
    }
    assert answer.body["status"] == known


def test_conditions_are_merged_by_type(api: Callable[..., Any], job: str) -> None:
    kind = "application/apply-patch+yaml"
    for manager, name in (("one", "Complete"), ("two", "Failed")):
        condition = {**STATUS["conditions"][0], "type": name}
        body = {"apiVersion": JOB["apiVersion"], "kind": JOB["kind"], "status": {"conditions": [condition]}}
        assert api("PATCH", f"{job}/status?fieldManager={manager}", body, kind=kind).ok
    assert {item["type"] for item in api("GET", job).body["status"]["conditions"]} == {"Complete", "Failed"}


def test_the_table_has_our_columns(api: Callable[..., Any], job: str) -> None:
    api("PATCH", f"{job}/status", {"status": STATUS}, kind=MERGE)
    table = api("GET", job, accept=TABLE).body
    names = [column["name"] for column in table["columnDefinitions"]]
    usual = [column["name"] for column in table["columnDefinitions"] if not column["priority"]]
    assert usual == ["Name", "Phase", "Workers", "Step", "Metric", "ETA", "Age"]
    assert names == [*usual, "Epoch", "Loss", "Goodput", "Restarts", "Search", "Pods"]
    (row,) = table["rows"]
    assert row["cells"][:6] == ["digits", "Running", "2/3", 120, "val/accuracy 0.91", "3m"]


def test_the_names_that_kubectl_knows(api: Callable[..., Any], crd: str) -> None:
    (kind,) = [item for item in api("GET", crd).body["resources"] if item["name"] == "adaptivetrainingjobs"]
    assert kind["shortNames"] == ["atj"]
    assert kind["categories"] == ["adaptrain"]
    assert kind["namespaced"] is True
    names = {item["name"] for item in api("GET", crd).body["resources"]}
    assert {"adaptivetrainingjobs/status", "adaptivetrainingjobs/scale"} <= names
