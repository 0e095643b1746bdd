"""The converter from models to structural schemas, and the files made from it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from adaptrain_api import base, crd, errors, reference
from adaptrain_api.base import FreeForm, Integer, ListMap, Model, Number, Quantities, Rule, Rules, Text
from adaptrain_api.training.job import AdaptiveTrainingJob
from pydantic import Field


def converted(kind: Any) -> dict[str, Any]:
    """The schema of a single field."""
    model = type("Holder", (Model,), {"__annotations__": {"field": kind}})
    schema: dict[str, Any] = crd.structural(model)["properties"]["field"]
    return schema


class Inner(Model):
    """An inner
    model."""

    name: Text
    snake_case: Text | None = None

    rules = (Rule(cel="self.name != 'a'", message="not a", path=".name"),)


class Tree(Model):
    children: "list[Tree]" = []


INNER = {
    "description": "An inner model.",
    "type": "object",
    "properties": {"name": {"type": "string"}, "snakeCase": {"type": "string"}},
    "required": ["name"],
    "x-kubernetes-validations": [{"rule": "self.name != 'a'", "message": "not a", "fieldPath": ".name"}],
}
WHOLE = [{"rule": "self == int(self)", "message": "must be written as an integer, without a point"}]


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Text, {"type": "string"}),
        (Text | None, {"type": "string"}),
        (Inner, INNER),
        (Annotated[Inner | None, Field(description="Mine.")], {**INNER, "description": "Mine."}),
        (list[Inner], {"type": "array", "items": INNER}),
        (
            Annotated[list[Inner], Field(max_length=3), ListMap("name")],
            {
                "type": "array",
                "items": INNER,
                "maxItems": 3,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
        (
            Annotated[Number, Field(gt=0, lt=1)],
            {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True},
        ),
        (
            Annotated[Integer | None, Field(ge=1, le=2)],
            {"type": "integer", "minimum": 1, "maximum": 2, "x-kubernetes-validations": WHOLE},
        ),
        (Literal["a"], {"type": "string", "enum": ["a"]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (FreeForm, {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (
            Annotated[dict[str, Text], Field(max_length=2), Rules(Rule(cel="true", message="never"))],
            {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "maxProperties": 2,
                "x-kubernetes-validations": [{"rule": "true", "message": "never"}],
            },
        ),
    ],
)
def test_what_a_structural_schema_can_say(kind: Any, schema: dict[str, Any]) -> None:
    assert converted(kind) == schema


def test_a_quantity_is_an_integer_or_a_string() -> None:
    schema = converted(Quantities)["additionalProperties"]
    assert "type" not in schema
    assert schema["x-kubernetes-int-or-string"] is True


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Tree, "Holder.field.children[]: Tree contains itself"),
        (int | str, "Holder.field: a union of several types"),
        (list[Inner | Text], "Holder.field[]: a union of several types"),
        (None, "Holder.field: needs exactly one type, not 'null'"),
        (Any, "Holder.field: needs exactly one type, not None"),
        (list[Any], "Holder.field[]: needs exactly one type, not None"),
        (tuple[int, str], "Holder.field: prefixItems has no place in a structural schema"),
        (set[str], "Holder.field: uniqueItems has no place in a structural schema"),
        (bytes, "Holder.field: format 'binary' is unknown to the API server"),
        (Annotated[int, Field(multiple_of=2)], "Holder.field: multipleOf has no place in a structural schema"),
        (dict[Annotated[str, Field(pattern="a")], str], "Holder.field: .* has no place in a structural schema"),
        (
            Annotated[list[Inner], ListMap("snakeCase")],
            "Holder.field: list-map key snakeCase must be a required field",
        ),
    ],
)
def test_what_it_cannot_say_is_refused_with_the_fields_path(kind: Any, message: str) -> None:
    with pytest.raises(crd.NotStructural, match=message.replace("[]", r"\[\]")):
        converted(kind)


def test_defaults_are_in_full_and_without_nulls() -> None:
    class Outer(Model):
        inner: Inner = Inner(name="b")

    assert crd.structural(Outer)["properties"]["inner"]["default"] == {"name": "b"}


def test_metadata_is_left_to_the_api_server() -> None:
    schema = crd.custom_resource_definition(crd.JOB)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["properties"]["metadata"] == {"type": "object"}
    assert schema["required"] == ["spec"]


def test_the_files_are_those_that_the_models_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(check=True) == 0, capsys.readouterr().err
    assert reference.main(check=True) == 0, capsys.readouterr().err


def test_a_stale_file_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(AdaptiveTrainingJob, "rules", ())
    AdaptiveTrainingJob.model_rebuild(force=True)
    try:
        assert crd.main(check=True) == 1
        assert "crds/adaptrain.io_adaptivetrainingjobs.yaml" in capsys.readouterr().err
        assert reference.main(check=True) == 1
    finally:
        monkeypatch.undo()
        AdaptiveTrainingJob.model_rebuild(force=True)
    assert crd.main(check=True) == 0


def test_every_pattern_is_explained_in_words() -> None:
    assert patterns(crd.structural(AdaptiveTrainingJob)) <= errors.WORDS.keys()
    assert base.DNS_LABEL in errors.WORDS


def patterns(schema: dict[str, Any]) -> set[str]:
    found = {schema["pattern"]} if "pattern" in schema else set()
    for sub in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        found |= patterns(sub) if sub else set()
    return found


def test_every_field_has_a_description() -> None:
    def without(schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, sub in schema.get("properties", {}).items():
            if not sub.get("description"):
                yield f"{path}.{name}"
            yield from without(sub, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                yield from without(schema[key], f"{path}[]")

    for resource in crd.RESOURCES:
        root = crd.custom_resource_definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        parts = [name for part in ("spec", "status") for name in without(root["properties"][part], part)]
        assert parts == [], resource.kind


def test_jobs_can_be_chosen_by_phase_and_wide_columns_are_not_the_usual_ones() -> None:
    for resource in crd.RESOURCES:
        version = crd.custom_resource_definition(resource)["spec"]["versions"][0]
        assert {"jsonPath": ".status.phase"} in version["selectableFields"]
        columns = version["additionalPrinterColumns"]
        assert [c["name"] for c in columns if c.get("priority")] == [name for name, *_ in resource.wide]
