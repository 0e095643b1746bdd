"""What the models do beyond accepting and refusing."""

import json
import math
from typing import Any

import pytest
import yaml
from adaptrain_api.base import Model, dump, is_qualified_name
from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.manifest import documents
from adaptrain_api.objects import Condition
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_api.training.workers import Workers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

SPEC: dict[str, Any] = {
    "model": {"name": "mlp", "args": {"hidden": None}},
    "data": {"name": "digits"},
    "phases": [
        {
            "name": "train",
            "type": "supervised",
            "optimizer": {"learningRate": 1e-3},
            "batch": {"size": 8},
            "stop": {"epochs": 1},
        }
    ],
}
JOB: dict[str, Any] = {"metadata": {"name": "job", "labels": {"a": "b"}}, "spec": SPEC}


def test_names_are_camel_case_from_outside_and_snake_case_from_python() -> None:
    assert Workers(node_selector={"a": "b"}) == Workers.model_validate({"nodeSelector": {"a": "b"}})
    assert Workers.model_validate_json('{"nodeSelector": {"a": "b"}}').node_selector == {"a": "b"}
    for read in (Workers.model_validate, lambda found: Workers.model_validate_json(json.dumps(found))):
        with pytest.raises(ValidationError):
            read({"node_selector": {"a": "b"}})


def test_null_is_absent_where_the_schema_knows_the_field() -> None:
    workers = Workers.model_validate({"min": None, "replicas": None, "labels": {"a": None}, "env": None})
    assert workers == Workers(labels={})


def test_null_in_a_free_form_object_is_kept_through_a_dump() -> None:
    assert dump(AdaptiveTrainingJob.model_validate(JOB))["spec"]["model"]["args"] == {"hidden": None}


def test_a_dump_reads_back_as_it_was() -> None:
    job = AdaptiveTrainingJob.model_validate(JOB)
    assert AdaptiveTrainingJob.model_validate(json.loads(json.dumps(dump(job)))) == job
    assert dump(job)["metadata"]["labels"] == {"a": "b"}


def test_status_tolerates_what_a_newer_operator_wrote() -> None:
    condition = {
        "type": "Complete",
        "status": "True",
        "reason": "Trained",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = TrainingJobStatus.model_validate({"news": 1, "conditions": [{**condition, "news": 1}]})
    assert status.conditions == [Condition.model_validate(condition)]


def test_a_status_can_always_be_written_as_json() -> None:
    status = dump(TrainingJobStatus(loss=math.nan, step=3, eta=None))
    assert "loss" not in status
    json.dumps(status, allow_nan=False)


def test_progress_survives_a_loss_that_diverged() -> None:
    told = Progress(number=1, loss=math.nan, metrics={"val/loss": math.inf, "val/accuracy": 0.1})
    heard = Progress.model_validate_json(told.model_dump_json(by_alias=True))
    assert heard.loss is None
    assert heard.metrics == {"val/accuracy": 0.1}
    assert Progress.model_validate({"number": 1, "metrics": {"val/loss": None}, "news": 1}).metrics == {}


def test_models_are_frozen() -> None:
    workers: Model = Workers()
    with pytest.raises(ValidationError):
        workers.min = 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("a", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("a.b/" + "a" * 63, True),
        ("a" * 253 + "/a", True),
        ("a" * 254 + "/a", False),
        ("A/a", False),
        ("a/A", True),
        ("/a", False),
        ("a/", False),
        ("a/b/c", False),
        ("", False),
        ("a\n", False),
        ("ä", False),
    ],
)
def test_qualified_names(key: str, good: bool) -> None:
    assert is_qualified_name(key) is good


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000),
        ("2.0", 2),
        ("1e22", 1e22),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("010", 8),
        ("08", 8),
        ("0o17", 15),
        ("-0x10", -16),
        ("+0b1", 1),
        ("1_000", 1000),
        ("y", True),
        ("Off", False),
        ("tRue", "tRue"),
        ("'true'", "true"),
        ("!!str 5", "5"),
        ("~", None),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ("18446744073709551616", 18446744073709551616),
    ],
)
def test_yaml_is_read_as_kubectl_reads_it(text: str, value: object) -> None:
    assert documents(f"[{text}]") == [[value]]
    assert type(documents(f"[{text}]")[0][0]) is type(value)


def test_yaml_keys_are_strings_and_appear_once() -> None:
    assert documents("{1: a, true: b, x: c}") == [{"1": "a", "true": "b", "x": "c"}]
    assert documents("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}")[0]["d"] == {"b": 1, "c": 3}
    for text in ("a: 1\na: 2", "1: a\n'1': b", "[]: 1", "!!python/object:os.system {}"):
        with pytest.raises(yaml.YAMLError):
            documents(text)


def test_empty_documents_are_skipped() -> None:
    assert documents("---\n---\na: 1\n---\n# nothing\n") == [{"a": 1}]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_value_breaks_the_model_instead_of_being_refused(value: Any) -> None:
    for field in ("workers", "model", "phases", "seed", "suspend", "image", "checkpoint"):
        try:
            AdaptiveTrainingJob.model_validate({**JOB, "spec": {**SPEC, field: value}})
        except ValidationError:
            continue
