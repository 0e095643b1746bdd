"""What every model of the API shares: strictness, camelCase names, and rules that exist twice (CEL and Python).

The models accept exactly what the API server accepts, so that ``adaptrain run`` on a laptop and ``kubectl apply`` give
the same verdict. Where the server's ways differ from pydantic's, the types here follow the server.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel, to_snake
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A rule over several fields: ``cel`` runs in the API server, ``check`` is its Python twin, ``message`` is shared.

    A transition rule compares with the object before the change (``oldSelf``); it has no twin, since only the API
    server knows both.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None
    path: str = ""
    """The field to blame, relative to the model and with a dot in front (``fieldPath``); empty: the model itself."""
    privilege: str = ""
    """What the cluster's administrator may allow: the rule then does not hold. See ``privilege``."""


ALLOWED: set[str] = set()
"""Privileges that the cluster's administrator allows. The operator fills it at its start with the chart's value
``jobs.allow``; a job's pods, which the operator made, with all of them."""


def privilege(name: str, cel: str, what: str, check: Callable[[Any], bool], path: str = "") -> Rule:
    """A rule that refuses what the ``restricted`` Pod Security level refuses, unless the administrator allows it.

    The chart's value ``jobs.allow`` makes the list that the CEL rule begins with hold the name.
    """
    return Rule(
        cel=f"{name!r} in [] || {cel}",
        message=f"{what} is refused unless the cluster's administrator allows it: ask for {name} in the chart's"
        " value jobs.allow",
        check=check,
        path=path,
        privilege=name,
    )


def _enforce(rules: Iterable[Rule], value: object) -> None:
    broken = [
        (rule.path, rule.message)
        for rule in rules
        if rule.check is not None and rule.privilege not in ALLOWED and not rule.check(value)
    ]
    if broken:
        text = "; ".join(message for _, message in broken)
        raise PydanticCustomError("rule", "{text}", {"text": text, "broken": broken})


def _publish(rules: Iterable[Rule], schema: JsonSchemaValue) -> JsonSchemaValue:
    validations = [
        {"rule": rule.cel, "message": rule.message} | ({"fieldPath": rule.path} if rule.path else {}) for rule in rules
    ]
    if validations:
        schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", []), *validations]
    return schema


class Rules:
    """Rules for a value that is no Model: ``Annotated[dict[str, str], Rules(Rule(...))]``."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: T) -> T:
            _enforce(self.rules, value)
            return value

        schema = handler(source)
        if all(rule.check is None for rule in self.rules):
            return schema
        return core_schema.no_info_after_validator_function(check, schema)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _publish(self.rules, handler(core))


@dataclass(frozen=True)
class ListMap:
    """Marks a list whose items are told apart by one field: unique, and merged item by item in server-side apply."""

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(items: list[Any]) -> list[Any]:
            seen = set()
            for index, item in enumerate(items):
                key = item[self.key] if isinstance(item, dict) else getattr(item, to_snake(self.key))
                if key in seen:
                    message = f"{key!r} is taken by an earlier item: each {self.key} may appear once"
                    raise PydanticCustomError(
                        "rule", "{text}", {"text": message, "broken": [(f"[{index}].{self.key}", message)]}
                    )
                seen.add(key)
            return items

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        schema.update({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]})
        return schema


class Model(BaseModel):
    """Unknown fields are refused, instances are frozen, and names are camelCase in YAML and snake_case in Python."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        # The API server drops a null where the schema knows the field and does not call it nullable, and then applies
        # the default. An unknown field is an error even when it is null.
        if not isinstance(data, dict):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        return {key: value for key, value in data.items() if value is not None or key not in known}

    @model_validator(mode="after")
    def _keep_rules(self) -> "Model":
        _enforce(self.rules, self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        _publish(cls.rules, handler.resolve_ref_schema(schema))
        return schema

    # Python code builds models with snake_case keywords; what comes from YAML or JSON has camelCase names only, as in
    # the API server, which would refuse max_restarts as unknown.

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        return super().model_validate(obj, **{"by_alias": True, "by_name": False, **how})

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **how: Any) -> Self:
        return super().model_validate_json(json_data, **{"by_alias": True, "by_name": False, **how})


class Open(Model):
    """A Model that ignores what it does not know: its writer may be newer than its reader."""

    model_config = ConfigDict(**{**Model.model_config, "extra": "ignore"})


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_nulls(value: object) -> object:
    """Drop the nulls of a map whose values have a schema, as the API server does."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def _json(value: object) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case float() if math.isfinite(value):
            return
        case list():
            for item in value:
                _json(item)
        case dict() if all(isinstance(key, str) for key in value):
            for item in value.values():
                _json(item)
        case dict():
            raise ValueError("must have strings for keys: put them in quotes")
        case _:
            raise ValueError(f"can't hold {value!r}, which JSON has no word for: put it in quotes")


def json_object(value: object) -> object:
    """Take what JSON can say: a date from a YAML file would reach a cluster as text."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    _json(value)
    return value


QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]+)?$"


def _quantity(value: object) -> str | int:
    if isinstance(value, float):
        raise ValueError('must be an integer, or a quantity in quotes, such as "0.5"')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("must be a quantity such as 2, 500m or 4Gi")
    fits = value >= 0 if isinstance(value, int) else len(value) <= 64 and re.fullmatch(QUANTITY, value)
    if not fits or (isinstance(value, int) and value >= 2**63):
        raise ValueError("must be a quantity such as 2, 500m or 4Gi")
    return value


# The schema alone would take 2.0 and 2.0000000001 for integers and store them as they came, and the next CEL rule that
# touched such a field would break. So that there is one answer everywhere, a rule of the field's own touches it first.
Integer: TypeAlias = Annotated[
    int, Strict(), Rules(Rule(cel="self == int(self)", message="must be written as an integer, without a point"))
]
Number: TypeAlias = Annotated[float, Strict(), AllowInfNan(False)]
Boolean: TypeAlias = Annotated[bool, Strict()]
Text: TypeAlias = Annotated[str, Strict()]
# Before, so that what is no number is null in JSON; after, for text such as "1e999" that becomes one.
Reading: TypeAlias = Annotated[float | None, BeforeValidator(_finite_or_none), AfterValidator(_finite_or_none)]
"""A measurement. JSON has no NaN, so that a loss which diverged is told as absent and not by an unwritable status."""
Readings: TypeAlias = Annotated[
    dict[str, float],
    AfterValidator(lambda found: {name: value for name, value in found.items() if math.isfinite(value)}),
    BeforeValidator(without_nulls),
]
"""Measurements by name; those that are no finite number are left out."""
Texts: TypeAlias = Annotated[dict[Text, Text], BeforeValidator(without_nulls)]

Quantity: TypeAlias = Annotated[
    str | int,
    PlainValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY, "maxLength": 64, "minimum": 0}),
    Rules(Rule(cel="type(self) == int || type(self) == string", message="must be an integer, or a quantity in quotes")),
]
Quantities: TypeAlias = Annotated[dict[Text, Quantity], BeforeValidator(without_nulls)]

FreeForm: TypeAlias = Annotated[
    dict[str, Any],
    BeforeValidator(json_object),
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object whose inside is not ours to check: arguments of a user's callable, or a Kubernetes type passed through."""

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_LABEL = rf"^{_LABEL}$"
DNS_SUBDOMAIN = rf"^{_LABEL}(\.{_LABEL})*$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

DnsLabel: TypeAlias = Annotated[Text, Field(pattern=DNS_LABEL, min_length=1, max_length=63)]
DnsSubdomain: TypeAlias = Annotated[Text, Field(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]
LabelValue: TypeAlias = Annotated[Text, Field(pattern=LABEL_VALUE, max_length=63)]

_QUALIFIED = re.compile(r"([^/]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def is_qualified_name(key: str) -> bool:
    """Whether Kubernetes takes it for the key of a label or annotation: ``name`` or ``example.com/name``."""
    prefix, slash, _ = key.partition("/")
    return _QUALIFIED.fullmatch(key) is not None and (
        not slash or (len(prefix) <= 253 and re.fullmatch(DNS_SUBDOMAIN[1:-1], prefix) is not None)
    )


QUALIFIED_KEYS = Rule(
    cel="self.all(key, !format.qualifiedName().validate(key).hasValue())",
    message="keys must look like name or example.com/name, a name being at most 63 letters, digits, '-', '_' and '.'",
    check=lambda found: all(is_qualified_name(key) for key in found),
)


def dump(model: Model) -> dict[str, Any]:
    """A model as the JSON object that the API server would store (camelCase, absent fields left out)."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def given(model: Model, exclude: set[str] | None = None) -> dict[str, Any]:
    """The same without fields at their default.

    For readers of another release: one that does not know a new field yet gets it only if somebody gave it.
    """
    return model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=exclude)


def manifest_of(resource: Any) -> dict[str, Any]:
    """The manifest of a job or search with what was given, for readers of another release."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": dump(resource.metadata),
        "spec": given(resource.spec),
    }
